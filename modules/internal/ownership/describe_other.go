//go:build !unix

package ownership

// Describe says whose a file is, as the end of an error. It says nothing if
// files have access lists instead.
func Describe(string) string { return "" }
