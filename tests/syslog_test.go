package tests

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// TestSyslog sends messages from rsyslog to syslog-ng at home. Either end
// shows a certificate of a CA that the relay knows nothing of, so TLS goes
// through it untouched or not at all.
func TestSyslog(t *testing.T) {
	const messages = 5000
	w := newWorld(t)
	server := services.StartSyslogNG(t, w.Home)
	w.start(t, w.ports(t))
	for _, mode := range []string{"x509/name", "x509/certvalid"} {
		program := strings.TrimPrefix(mode, "x509/")
		t.Run(program, func(t *testing.T) {
			var want []string
			for i := range messages {
				want = append(want, fmt.Sprintf("message %d by %s: %s", i, mode, strings.Repeat("x", i%200)))
			}
			input := filepath.Join(testnet.Folder(t), "input")
			testnet.WriteFile(t, input, []byte(strings.Join(want, "\n")+"\n"), 0o644)
			services.StartRsyslog(t, w.Client, server, services.Rsyslog{Host: testnet.Endpoint, Mode: mode, Program: program, Input: input})
			testnet.Eventually(t, 30*time.Second, func() error {
				got := server.Received(t, program)
				if len(got) < messages {
					return fmt.Errorf("only %d of %d messages have come", len(got), messages)
				}
				if !slices.Equal(got, want) {
					return fmt.Errorf("the messages are not the ones that were sent")
				}
				return nil
			})
		})
	}
}
