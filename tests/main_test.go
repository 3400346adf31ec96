// Package tests has Homeward's whole-system tests: the built binary as an
// unprivileged relay, a home of real software behind carrier-grade NAT, and
// the clients that people have. tests/run.sh runs them.
package tests

import (
	"os"
	"testing"

	"github.com/homeward-relay/homeward/tests/testnet"
)

func TestMain(m *testing.M) { os.Exit(testnet.Main(m)) }
