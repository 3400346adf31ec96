//go:build !linux

package publictcp

import (
	"errors"
	"net"

	"go.uber.org/zap"
)

func boundUnsent(uintptr) {}

func roundTrip(uintptr) (uint32, error) { return 0, errors.ErrUnsupported }

func setOptions(uintptr, string) error { return errors.ErrUnsupported }

func present(*net.TCPConn) []zap.Field { return nil }

func sysctl(string) string { return "" }
