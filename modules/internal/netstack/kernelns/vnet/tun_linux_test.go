package vnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needTUN skips a test that cannot make one.
func needTUN(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making a TUN needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("setting up a TUN needs ip of iproute2")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip(err)
	}
}

// TestKernelTCP sends TCP from one kernel's stack to another's through a
// Segmenter and a Coalescer.
func TestKernelTCP(t *testing.T) {
	needTUN(t)
	const mtu, size = 1420, 16 << 20
	mark := func(packet []byte) {
		if packet[0]>>4 == 6 {
			packet[1] |= 0x30
			return
		}
		packet[1] |= 3
		withRightSums(packet)
	}
	tests := []struct {
		name    string
		address string
		mtu     int // of the cable

		// change is made to one of 500 large packets.
		change   func([]byte)
		isMarked bool
	}{
		{"IPv4", "10.77.0.2", mtu, nil, false},
		{"IPv6", "fd00::2", mtu, nil, false},
		{"IPv4 with a smaller MTU", "10.77.0.2", 1280, nil, false},
		{"IPv6 with a smaller MTU", "fd00::2", 1280, nil, false},
		{"IPv4 with congestion marks", "10.77.0.2", mtu, mark, true},
		{"IPv6 with congestion marks", "fd00::2", mtu, mark, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			client := newMachine(t, mtu, "10.77.0.1/24", "fd00::1/64")
			server := newMachine(t, mtu, "10.77.0.2/24", "fd00::2/64")
			there, back, end := connect(t, client, server, mtu, test.change)

			payload := randomBytes(rand.New(rand.NewPCG(1, 1)), 1<<20)
			payload = bytes.Repeat(payload, size>>20)
			got := transfer(t, client, server, test.address, payload, func() { there.mtu.Store(int64(test.mtu)) })
			end()
			if got != sha256.Sum256(payload) {
				t.Error("what came is not what was sent")
			}
			changed := there.changed
			if test.change != nil && changed == 0 {
				t.Error("no packet was changed on its way")
			}
			if n := server.count(t, "Tcp", "InCsumErrors"); n != 0 {
				t.Errorf("the server saw %d wrong checksums", n)
			}
			if n := client.count(t, "Tcp", "InCsumErrors"); n != 0 {
				t.Errorf("the client saw %d wrong checksums", n)
			}
			if there.tcp == 0 || there.joined == 0 {
				t.Errorf("%d superpackets were cut, %d frames joined", there.tcp, there.joined)
			}
			if there.largest > test.mtu || there.largest < test.mtu-100 {
				t.Errorf("the largest packet has %d bytes, the MTU is %d", there.largest, test.mtu)
			}
			if test.isMarked && there.cwr == 0 {
				t.Error("the client answered no congestion mark with a superpacket")
			}
			t.Logf("%d superpackets cut (%d with CWR), %d frames joined, %d packets changed; %d frames back",
				there.tcp, there.cwr, there.joined, changed, back.frames)
		})
	}
}

// TestKernelUDP sends datagrams, one by one and as a superpacket.
func TestKernelUDP(t *testing.T) {
	needTUN(t)
	const mtu = 1420
	for name, addresses := range map[string][2]string{"IPv4": {"10.77.0.1", "10.77.0.2"}, "IPv6": {"fd00::1", "fd00::2"}} {
		t.Run(name, func(t *testing.T) {
			client := newMachine(t, mtu, "10.77.0.1/24", "fd00::1/64")
			server := newMachine(t, mtu, "10.77.0.2/24", "fd00::2/64")
			there, _, end := connect(t, client, server, mtu, nil)
			from, to := listenUDP(t, client, addresses[0]), listenUDP(t, server, addresses[1])

			payload := randomBytes(rand.New(rand.NewPCG(1, 1)), 5500)
			if _, err := from.WriteTo(payload[:100], to.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			receive(t, to, payload[:100])
			if err := client.offload(unix.TUN_F_USO4 | unix.TUN_F_USO6); err != nil {
				t.Skipf("this kernel's TUN has no superpackets of UDP: %v", err)
			}
			raw, err := from.(*net.UDPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1000) })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := from.WriteTo(payload, to.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			for rest := payload; len(rest) > 0; {
				n := min(1000, len(rest))
				receive(t, to, rest[:n])
				rest = rest[n:]
			}
			end()
			if there.udp == 0 {
				t.Error("no superpacket of UDP came")
			}
		})
	}
}

// receive waits for one datagram.
func receive(t *testing.T, conn net.PacketConn, want []byte) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 1<<16)
	n, _, err := conn.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b[:n], want) {
		t.Fatalf("a datagram of %d bytes is not the one of %d that was sent", n, len(want))
	}
}

func listenUDP(t *testing.T, m *machine, address string) net.PacketConn {
	t.Helper()
	var conn net.PacketConn
	var err error
	m.in(func() { conn, err = net.ListenPacket("udp", net.JoinHostPort(address, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// transfer sends a payload and returns the hash of what comes. It calls onStart
// when the connection is up.
func transfer(t *testing.T, client, server *machine, address string, payload []byte, onStart func()) (hash [sha256.Size]byte) {
	t.Helper()
	var listener net.Listener
	var err error
	server.in(func() { listener, err = net.Listen("tcp", net.JoinHostPort(address, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	received := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			received <- err
			return
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		conn.SetDeadline(deadline)
		h := sha256.New()
		_, err = io.Copy(h, conn)
		h.Sum(hash[:0])
		received <- err
	}()
	fd, err := dial(client, listener.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(fd)
	fd.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	onStart()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	if _, err := conn.Write(payload); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if err := <-received; err != nil {
		t.Fatal(err)
	}
	return hash
}
