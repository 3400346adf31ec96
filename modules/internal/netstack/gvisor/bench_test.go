//go:build unix

package gvisor_test

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	stock "golang.zx2c4.com/wireguard/tun/netstack"

	"github.com/homeward-relay/homeward/modules/internal/netstack/gvisor"
)

// The benchmark compares this stack with wireguard-go's own netstack, as one
// end of a WireGuard tunnel over loopback:
//
//	go test -run '^$' -bench . -benchtime 3s ./modules/internal/netstack/gvisor
//
// The other end is the same in all cases, this stack, and runs in a process of
// its own, so that the CPU time that is printed is that of the end in
// question. Up is what it sends, down what it receives. Compare ratios of one
// run; the machine decides the rest.
const (
	benchHomeEnv = "HOMEWARD_BENCH_HOME"
	benchMTU     = 1420

	// Ports at home: one takes everything, the other gives without end.
	sinkPort   = 1
	sourcePort = 2

	// benchPiece is what one Read or Write carries, as in a relay.
	benchPiece = 32 << 10
)

func benchAddresses(host int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.77.0.%d/24", host)),
		netip.MustParsePrefix(fmt.Sprintf("fd77::%d/64", host)),
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(benchHomeEnv) != "" {
		if err := benchHome(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// dialer is what the two stacks have in common.
type dialer func(ctx context.Context, to netip.AddrPort) (net.Conn, error)

func ourEnd() (tun.Device, dialer, error) {
	stack, err := gvisor.New(gvisor.Config{Name: "bench", MTU: benchMTU, Addresses: benchAddresses(1)})
	if err != nil {
		return nil, nil, err
	}
	return stack.Device(), func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		return stack.DialTCP(ctx, netip.AddrPort{}, to)
	}, nil
}

func stockEnd() (tun.Device, dialer, error) {
	var addresses []netip.Addr
	for _, prefix := range benchAddresses(1) {
		addresses = append(addresses, prefix.Addr())
	}
	device, stack, err := stock.CreateNetTUN(addresses, nil, benchMTU)
	if err != nil {
		return nil, nil, err
	}
	return device, func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		return stack.DialContextTCPAddrPort(ctx, to)
	}, nil
}

func BenchmarkTunnel(b *testing.B) {
	ends := []struct {
		name string
		make func() (tun.Device, dialer, error)
	}{
		{"homeward", ourEnd},
		{"stock", stockEnd},
	}
	homes := map[string]netip.Addr{
		"IPv4": netip.MustParseAddr("10.77.0.2"),
		"IPv6": netip.MustParseAddr("fd77::2"),
	}
	for _, version := range []string{"IPv4", "IPv6"} {
		for _, streams := range []int{1, 8} {
			for _, direction := range []string{"up", "down"} {
				for _, end := range ends {
					b.Run(fmt.Sprintf("%s/%s/streams=%d/%s", version, direction, streams, end.name), func(b *testing.B) {
						dial := benchTunnel(b, end.make)
						port := uint16(sinkPort)
						if direction == "down" {
							port = sourcePort
						}
						benchTransfer(b, dial, netip.AddrPortFrom(homes[version], port), streams)
					})
				}
			}
		}
	}
}

// benchTransfer moves b.N MiB over a number of connections to one of home's
// ports, after a moment in which the windows grow.
func benchTransfer(b *testing.B, dial dialer, to netip.AddrPort, streams int) {
	const unit = 1 << 20
	work := make(chan struct{})
	errs := make(chan error, streams)
	for range streams {
		ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
		conn, err := dial(ctx, to)
		cancel()
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		go func() {
			buf := make([]byte, benchPiece)
			move := conn.Write
			if to.Port() == sourcePort {
				move = func(b []byte) (int, error) { return io.ReadFull(conn, b) }
			}
			for range work {
				for range unit / benchPiece {
					if _, err := move(buf); err != nil {
						errs <- err
						return
					}
				}
			}
			errs <- nil
		}()
	}
	for range 64 {
		work <- struct{}{}
	}
	b.SetBytes(unit)
	before, start := cpuTime(b), time.Now()
	b.ResetTimer()
	for range b.N {
		select {
		case work <- struct{}{}:
		case err := <-errs:
			b.Fatal(err)
		}
	}
	close(work)
	for range streams {
		if err := <-errs; err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	moved := float64(b.N) * unit
	b.ReportMetric(moved*8/1e9/time.Since(start).Seconds(), "Gbit/s")
	b.ReportMetric((cpuTime(b)-before).Seconds()/(moved/(1<<30)), "CPU-s/GiB")
	b.ReportMetric(0, "ns/op")
}

func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// benchTunnel starts home, and one end of a tunnel to it.
func benchTunnel(b *testing.B, make func() (tun.Device, dialer, error)) dialer {
	key, homeKey := benchKey(b), benchKey(b)
	home := exec.Command(os.Args[0])
	home.Env = append(os.Environ(), benchHomeEnv+"=1")
	home.Stderr = os.Stderr
	stdin, err := home.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := home.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := home.Start(); err != nil {
		b.Fatal(err)
	}
	stopHome := sync.OnceFunc(func() {
		stdin.Close()
		home.Wait()
	})
	b.Cleanup(stopHome)
	fmt.Fprintf(stdin, "%x %x\n", homeKey.Bytes(), key.PublicKey().Bytes())
	var port int
	if _, err := fmt.Fscanln(stdout, &port); err != nil {
		b.Fatal(err)
	}

	inner, dial, err := make()
	if err != nil {
		b.Fatal(err)
	}
	end := device.NewDevice(inner, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	b.Cleanup(func() {
		// The stock netstack panics if a packet comes in while it closes.
		stopHome()
		end.Down()
		end.Close()
	})
	err = end.IpcSet(fmt.Sprintf("private_key=%x\npublic_key=%x\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\nendpoint=127.0.0.1:%d\n",
		key.Bytes(), homeKey.PublicKey().Bytes(), port))
	if err != nil {
		b.Fatal(err)
	}
	if err := end.Up(); err != nil {
		b.Fatal(err)
	}
	return dial
}

func benchKey(b *testing.B) *ecdh.PrivateKey {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	return key
}

// benchHome is the process at the other end. It is told its keys, tells its
// port, and ends with its input.
func benchHome(in io.Reader, out io.Writer) error {
	lines := bufio.NewReader(in)
	var key, peer string
	if _, err := fmt.Fscanln(lines, &key, &peer); err != nil {
		return fmt.Errorf("reading keys: %w", err)
	}
	for _, k := range []string{key, peer} {
		if _, err := hex.DecodeString(k); err != nil {
			return fmt.Errorf("reading keys: %w", err)
		}
	}
	stack, err := gvisor.New(gvisor.Config{Name: "home", MTU: benchMTU, Addresses: benchAddresses(2)})
	if err != nil {
		return err
	}
	home := device.NewDevice(stack.Device(), conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	defer home.Close()
	if err := home.IpcSet(fmt.Sprintf("private_key=%s\npublic_key=%s\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n", key, peer)); err != nil {
		return fmt.Errorf("configuring home: %w", err)
	}
	if err := home.Up(); err != nil {
		return err
	}
	for port, serve := range map[uint16]func(net.Conn){
		sinkPort: func(conn net.Conn) {
			for buf := make([]byte, benchPiece); ; {
				if _, err := conn.Read(buf); err != nil {
					return
				}
			}
		},
		sourcePort: func(conn net.Conn) {
			for buf := make([]byte, benchPiece); ; {
				if _, err := conn.Write(buf); err != nil {
					return
				}
			}
		},
	} {
		listener, err := stack.ListenTCP(netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		if err != nil {
			return err
		}
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					serve(conn)
				}()
			}
		}()
	}
	state, err := home.IpcGet()
	if err != nil {
		return err
	}
	for line := range strings.Lines(state) {
		if port, found := strings.CutPrefix(line, "listen_port="); found {
			fmt.Fprint(out, port)
		}
	}
	_, err = io.Copy(io.Discard, lines)
	return err
}
