//go:build !unix

package relay

// descriptorLimit is 0: there is no limit to speak of.
func descriptorLimit() uint64 { return 0 }
