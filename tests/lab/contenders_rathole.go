package lab

import (
	"errors"
	"testing"
)

func init() {
	register(absent{"rathole", "it is written in Rust, and neither Debian nor the Go module proxy has it"})
}

// absent is a contender that cannot be had, so that tables say so.
type absent struct{ name, reason string }

func (a absent) Name() string { return a.name }

func (a absent) Obtain(testing.TB) (string, error) { return "", errors.New(a.reason) }

func (a absent) Start(t testing.TB, _ *World) Running {
	t.Helper()
	t.Fatalf("%s cannot be had: %s", a.name, a.reason)
	return Running{}
}
