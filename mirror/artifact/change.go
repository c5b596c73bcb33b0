package artifact

// Change is what the catalog has at one place of its order: the manifest of a module version as it became there. All nodes
// have the same manifest at the same Seq.
type Change struct {
	Seq      int64
	Manifest Manifest
}
