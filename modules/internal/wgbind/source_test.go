package wgbind

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

// movedBind is on a host that has lost the address of some endpoints.
type movedBind struct {
	conn.Bind
	err  error // what sending from the lost address gives
	sent []conn.Endpoint
}

func (b *movedBind) Send(_ [][]byte, endpoint conn.Endpoint) error {
	if endpoint.SrcIP().IsValid() {
		return b.err
	}
	b.sent = append(b.sent, endpoint)
	return nil
}

// stickyEndpoint is called from a fixed address.
type stickyEndpoint struct {
	conn.Endpoint
	source netip.Addr
}

func (e stickyEndpoint) SrcIP() netip.Addr { return e.source }

func TestSendsFromAnotherAddress(t *testing.T) {
	lost, kept := netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("127.0.0.1")
	for _, tt := range []struct {
		name   string
		source netip.Addr
		err    error
		want   error
	}{
		{"Linux", lost, syscall.EINVAL, nil},
		{"other systems", lost, syscall.EADDRNOTAVAIL, nil},
		{"the interface is gone", kept, syscall.ENETUNREACH, nil},
		{"something else", lost, syscall.EPERM, syscall.EPERM},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inner := &movedBind{Bind: conn.NewDefaultBind(), err: tt.err}
			b := New()
			b.current = inner
			there, err := b.ParseEndpoint("203.0.113.5:51820")
			if err != nil {
				t.Fatal(err)
			}
			err = b.Send([][]byte{[]byte("hello")}, stickyEndpoint{there, tt.source})
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v", err)
			}
			if tt.want != nil {
				return
			}
			if len(inner.sent) != 1 || inner.sent[0].DstToString() != there.DstToString() {
				t.Errorf("sent to %v", inner.sent)
			}
		})
	}
}

// An initiation is sent again from whichever address leads there by then.
func TestInitiationIsSentAgainFromAnotherAddress(t *testing.T) {
	inner := &movedBind{Bind: conn.NewDefaultBind()}
	b := New()
	b.current = inner
	there, err := b.ParseEndpoint("203.0.113.5:51820")
	if err != nil {
		t.Fatal(err)
	}
	initiation := message(initiationType, initiationSize, 4, 42)
	if err := b.Send([][]byte{initiation}, stickyEndpoint{there, netip.MustParseAddr("127.0.0.1")}); err != nil {
		t.Fatal(err)
	}
	i := b.resender.calling[there.DstToString()]
	b.resender.again(i)
	b.resender.stop()
	if len(inner.sent) != 1 {
		t.Errorf("sent again from its old address: %v", inner.sent)
	}
}
