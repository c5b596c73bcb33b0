//go:build !faults

package fault

// Enabled reports whether this is a build with -tags faults.
const Enabled = false

// Point is where the process can be made to die, to stop or to wait.
func Point(Name) {}

// Error is Point before an operation of the disk. If it returns an error, the operation is not tried and has failed with it.
func Error(Name) error { return nil }

// Limit returns a bound that tests make smaller, so that what takes a day on a real mirror happens in seconds: n, unless the
// environment has another number for name.
func Limit(name string, n int64) int64 { return n }
