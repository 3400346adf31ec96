//go:build !linux

package publictcp

import (
	"errors"
	"net"

	"go.uber.org/zap"
)

func setOptions(uintptr, string) error { return errors.ErrUnsupported }

func present(*net.TCPConn) []zap.Field { return nil }

func sysctl(string) string { return "" }
