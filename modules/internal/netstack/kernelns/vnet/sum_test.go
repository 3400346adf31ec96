package vnet

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

func TestSum(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	fills := map[string]func() byte{
		"random": func() byte { return byte(random.Uint32()) },
		"ones":   func() byte { return 0xff },
		"zeroes": func() byte { return 0 },
		// Each addition but the first carries.
		"carries": func() byte { return 0xfe | byte(random.Uint32()) },
	}
	for name, fill := range fills {
		t.Run(name, func(t *testing.T) {
			for size := range 300 {
				b := make([]byte, size)
				for i := range b {
					b[i] = fill()
				}
				var got [2]byte
				binary.NativeEndian.PutUint16(got[:], fold(sum(b, 0)))
				if want := checksum.Checksum(b, 0); binary.BigEndian.Uint16(got[:]) != want {
					t.Errorf("the sum of %d bytes is %#x, want %#x", size, got, want)
				}
				// The initial value counts like bytes before the others.
				whole := sum(b[min(16, size):], sum(b[:min(16, size)], 0))
				if fold(whole) != fold(sum(b, 0)) {
					t.Errorf("the sum of %d bytes in two steps is another", size)
				}
			}
		})
	}
}

// TestSumKeepsLastCarry has the one case where adding a carry overflows again.
func TestSumKeepsLastCarry(t *testing.T) {
	b := make([]byte, 16)
	for i := range b {
		b[i] = 0xff
	}
	for _, initial := range []uint64{0, 1, 1<<64 - 1} {
		if got := fold(sum(b, initial)); initial == 1 && got != 1 || initial != 1 && got != 0xffff {
			t.Errorf("with %#x before them, sixteen bytes of ones have the sum %#x", initial, got)
		}
	}
}
