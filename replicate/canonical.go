package replicate

import "bytes"

// Nodes that are built with different Go releases must agree on what they apply, for ever. encoding/json and time promise
// to read what is right, and have changed in what else they accept; so the two forms below are read by hand.

// canonicalTime reports whether s is a time in UTC as time.RFC3339Nano prints it, and not Go's zero time:
//
//	2024-05-06T07:08:09Z
//	2024-05-06T07:08:09.000000001Z
//
// with at most nine digits of a second, the last of which is not 0.
func canonicalTime(s []byte) bool {
	const form = "0000-00-00T00:00:00"
	if len(s) < len(form)+1 || s[len(s)-1] != 'Z' {
		return false
	}
	for i := range len(form) {
		if form[i] == '0' && !isDigit(s[i]) || form[i] != '0' && s[i] != form[i] {
			return false
		}
	}
	number := func(from, to int) (n int) {
		for _, c := range s[from:to] {
			n = 10*n + int(c-'0')
		}
		return n
	}
	year, month, day := number(0, 4), number(5, 7), number(8, 10)
	if month < 1 || month > 12 || day < 1 || day > daysIn(year, month) {
		return false
	}
	if number(11, 13) > 23 || number(14, 16) > 59 || number(17, 19) > 59 {
		return false
	}
	fraction := s[len(form) : len(s)-1]
	if len(fraction) == 0 {
		return string(s) != "0001-01-01T00:00:00Z"
	}
	if fraction[0] != '.' || len(fraction) < 2 || len(fraction) > 10 || fraction[len(fraction)-1] == '0' {
		return false
	}
	return len(bytes.TrimLeft(fraction[1:], "0123456789")) == 0
}

func daysIn(year, month int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// maxNesting bounds objects and arrays in each other.
const maxNesting = 10000

// compactObject reports whether s is one JSON object (RFC 8259) without any space outside of strings. Strings may hold
// bytes that are no UTF-8.
func compactObject(s []byte) bool {
	if len(s) == 0 || s[0] != '{' {
		return false
	}
	rest, ok := jsonValue(s, 0)
	return ok && len(rest) == 0
}

// jsonValue takes a value off the front of s.
func jsonValue(s []byte, depth int) (rest []byte, ok bool) {
	if len(s) == 0 {
		return nil, false
	}
	switch c := s[0]; {
	case c == '{':
		return jsonList(s[1:], '}', depth+1, jsonMember)
	case c == '[':
		return jsonList(s[1:], ']', depth+1, jsonValue)
	case c == '"':
		return jsonString(s)
	case c == '-' || isDigit(c):
		return jsonNumber(s)
	}
	for _, word := range []string{"true", "false", "null"} {
		if rest, ok := bytes.CutPrefix(s, []byte(word)); ok {
			return rest, true
		}
	}
	return nil, false
}

// jsonList takes elements with commas between them, and the end.
func jsonList(s []byte, end byte, depth int, element func([]byte, int) ([]byte, bool)) (rest []byte, ok bool) {
	if depth > maxNesting {
		return nil, false
	}
	if len(s) > 0 && s[0] == end {
		return s[1:], true
	}
	for {
		if s, ok = element(s, depth); !ok || len(s) == 0 {
			return nil, false
		}
		switch s[0] {
		case end:
			return s[1:], true
		case ',':
			s = s[1:]
		default:
			return nil, false
		}
	}
}

func jsonMember(s []byte, depth int) (rest []byte, ok bool) {
	if s, ok = jsonString(s); !ok || len(s) == 0 || s[0] != ':' {
		return nil, false
	}
	return jsonValue(s[1:], depth)
}

func jsonString(s []byte) (rest []byte, ok bool) {
	if len(s) == 0 || s[0] != '"' {
		return nil, false
	}
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return s[i+1:], true
		case c < ' ':
			return nil, false
		case c == '\\':
			i++
			if i == len(s) {
				return nil, false
			}
			if s[i] == 'u' {
				if len(s) < i+5 || len(bytes.TrimLeft(s[i+1:i+5], "0123456789abcdefABCDEF")) > 0 {
					return nil, false
				}
				i += 4
			} else if bytes.IndexByte([]byte(`"\/bfnrt`), s[i]) < 0 {
				return nil, false
			}
		}
	}
	return nil, false
}

func jsonNumber(s []byte) (rest []byte, ok bool) {
	s = bytes.TrimPrefix(s, []byte("-"))
	if len(s) > 1 && s[0] == '0' && isDigit(s[1]) {
		return nil, false
	}
	if s, ok = digits(s); !ok {
		return nil, false
	}
	if len(s) > 0 && s[0] == '.' {
		if s, ok = digits(s[1:]); !ok {
			return nil, false
		}
	}
	if len(s) > 0 && (s[0] == 'e' || s[0] == 'E') {
		s = s[1:]
		if len(s) > 0 && (s[0] == '+' || s[0] == '-') {
			s = s[1:]
		}
		return digits(s)
	}
	return s, true
}

// digits takes one digit or more.
func digits(s []byte) (rest []byte, ok bool) {
	rest = bytes.TrimLeft(s, "0123456789")
	return rest, len(rest) < len(s)
}
