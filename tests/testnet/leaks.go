package testnet

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// leakPatience is how long goroutines that are about to end have for it.
// goleak gives them half a second, which a busy machine may not let them have.
const leakPatience = 30 * time.Second

// MainWithoutLeaks runs the tests of a package and then wants every goroutine gone. Call it
// as TestMain.
func MainWithoutLeaks(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := FindLeaks(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines are left when all tests have passed:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// FindLeaks returns an error that tells which goroutines are left, or nil when
// there are none any more.
func FindLeaks(options ...goleak.Option) error {
	for end := time.Now().Add(leakPatience); ; {
		err := goleak.Find(options...)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}
