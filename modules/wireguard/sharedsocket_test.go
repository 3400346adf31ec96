package wireguard

import (
	"errors"
	"net"
	"testing"
	"time"
)

// sharedPort is a key that no configuration can have.
const sharedPort = 0

// opened says whether a use gets what is sent to its address, which need not
// be at once.
func opened(t *testing.T, use any) error {
	t.Helper()
	switch use := use.(type) {
	case net.Listener:
		conn, err := net.Dial("tcp", use.Addr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		accepted, err := use.Accept()
		if err != nil {
			return err
		}
		return accepted.Close()
	case net.PacketConn:
		conn, err := net.Dial("udp", use.LocalAddr().String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("hello")); err != nil {
			return err
		}
		use.SetReadDeadline(time.Now().Add(patience))
		_, _, err = use.ReadFrom(make([]byte, 10))
		return err
	}
	t.Fatalf("a %T", use)
	return nil
}

// TestStoppedSocketIsReplaced has a socket end under its users, as with its
// stack: who asks next gets another, and the first user stays alone with what
// it had.
func TestStoppedSocketIsReplaced(t *testing.T) {
	for _, tt := range []struct {
		network string
		// open returns a socket and what ends it.
		open func() (socket sharedSocket, end func() error, err error)
		use  func(socket sharedSocket, release func() error) any
	}{
		{
			network: networkTCP,
			open: func() (sharedSocket, func() error, error) {
				listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					return nil, nil, err
				}
				return newSharedListener(listener), listener.Close, nil
			},
			use: func(socket sharedSocket, release func() error) any {
				return socket.(*sharedListener).use(release, net.KeepAliveConfig{})
			},
		},
		{
			network: networkUDP,
			open: func() (sharedSocket, func() error, error) {
				conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					return nil, nil, err
				}
				return newSharedPacketConn(conn), conn.Close, nil
			},
			use: func(socket sharedSocket, release func() error) any {
				return socket.(*sharedPacketConn).use(release)
			},
		},
	} {
		t.Run(tt.network, func(t *testing.T) {
			key := listenerKey{network: tt.network, tunnel: t.Name(), port: sharedPort}
			var opens int
			var end func() error
			get := func() (socket sharedSocket, use any) {
				t.Helper()
				socket, release, err := acquire(key, func() (socket sharedSocket, err error) {
					opens++
					socket, end, err = tt.open()
					return socket, err
				})
				if err != nil {
					t.Fatal(err)
				}
				return socket, tt.use(socket, release)
			}
			first, firstUse := get()
			_, secondUse := get()
			if opens != 1 {
				t.Fatalf("two users have %d sockets", opens)
			}
			if err := opened(t, secondUse); err != nil {
				t.Error(err)
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			switch socket := first.(type) {
			case *sharedListener:
				<-socket.stopped
			case *sharedPacketConn:
				<-socket.stopped
			}
			_, thirdUse := get()
			_, fourthUse := get()
			if opens != 2 {
				t.Fatalf("after the first ended, %d sockets were opened, want 2", opens)
			}
			for _, use := range []any{thirdUse, fourthUse} {
				if err := opened(t, use); err != nil {
					t.Errorf("the new socket: %v", err)
				}
			}
			// The last users of the old one, and then all but one.
			for _, use := range []any{firstUse, secondUse, thirdUse} {
				use.(interface{ Close() error }).Close()
			}
			if err := opened(t, fourthUse); err != nil {
				t.Errorf("the new socket, with one user left: %v", err)
			}
			if err := fourthUse.(interface{ Close() error }).Close(); err != nil {
				t.Error(err)
			}
			if references, exists := listeners.References(key); exists {
				t.Errorf("%d references are left", references)
			}
			if err := end(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("without users, the socket is still open: %v", err)
			}
		})
	}
}

// TestSocketNotOpened has nothing left of a socket that could not be opened.
func TestSocketNotOpened(t *testing.T) {
	key := listenerKey{network: networkTCP, tunnel: t.Name(), port: sharedPort}
	reason := errors.New("no tunnel")
	for range 2 {
		if _, _, err := acquire(key, func() (sharedSocket, error) { return nil, reason }); !errors.Is(err, reason) {
			t.Errorf("error is %v", err)
		}
		if references, exists := listeners.References(key); exists {
			t.Errorf("%d references are left", references)
		}
	}
}
