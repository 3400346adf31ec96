package publictcp

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

func TestCheckName(t *testing.T) {
	for _, tt := range []struct {
		name string
		ok   bool
	}{
		{"bbr", true},
		{"dctcp-reno", true},
		{"bpf_cubic", true},
		{"abcdefghijklmno", true},
		{"abcdefghijklmnop", false}, // Linux would take the first 15
		{"", false},
		{"BBR", false},
		{"bbr cubic", false},
		{"bbr;id", false},
		{"bbr\x00", false},
	} {
		t.Run(fmt.Sprintf("%q", tt.name), func(t *testing.T) {
			if err := CheckName(tt.name); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	var r reasons
	for _, tt := range []struct {
		name, algorithm string
		err             error
		first           bool
	}{
		{"one", "bbr", syscall.ENOENT, true},
		{"the same again, wrapped", "bbr", fmt.Errorf("setting: %w", syscall.ENOENT), false},
		{"another reason", "bbr", syscall.EPERM, true},
		{"another congestion control", "vegas", syscall.EPERM, true},
		{"no errno", "bbr", errors.ErrUnsupported, true},
		{"no errno again", "bbr", errors.ErrUnsupported, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := r.first(tt.algorithm, tt.err); got != tt.first {
				t.Errorf("first is %t", got)
			}
		})
	}
}

func TestRemedy(t *testing.T) {
	allowed := "<those that are allowed>"
	if names := sysctl("allowed"); names != "" {
		allowed = names
	}
	for _, tt := range []struct {
		name string
		err  error
		want []string
	}{
		{"not loaded", syscall.ENOENT, []string{": modprobe tcp_vegas;", ": echo tcp_vegas > /etc/modules-load.d/tcp_vegas.conf"}},
		{"not allowed", syscall.EPERM, []string{
			`: sysctl -w net.ipv4.tcp_allowed_congestion_control="` + allowed + ` vegas";`,
			`: echo 'net.ipv4.tcp_allowed_congestion_control = ` + allowed + ` vegas' > /etc/sysctl.d/tcp_vegas.conf`,
		}},
		{"not on this system", errors.ErrUnsupported, []string{"none: this system"}},
		{"anything else", syscall.EBUSY, []string{"none known"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := remedy("vegas", fmt.Errorf("setting: %w", tt.err))
			for _, want := range tt.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in %q", want, got)
				}
			}
		})
	}
}
