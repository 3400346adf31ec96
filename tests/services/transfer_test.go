package services

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"
)

// TestTransfers makes transfers through something that leaves them as they are, or
// does not.
func TestTransfers(t *testing.T) {
	const size = 300 << 10
	namespace := local(t)
	type end struct {
		transfer Transfer
		err      error
	}
	ended := make(chan end, 1)
	Transfers(t, namespace, "127.0.0.1:7001", func(_ net.Addr, transfer Transfer, err error) { ended <- end{transfer, err} })

	// between passes both directions on, the one with the content as its copy does.
	between := func(t *testing.T, up bool, pass func(dst io.Writer, src io.Reader) error) *net.TCPConn {
		listener := namespace.Listen(t, "tcp", "127.0.0.1:0")
		go func() {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			defer client.Close()
			service, err := namespace.Dial(t.Context(), "tcp", "127.0.0.1:7001")
			if err != nil {
				return
			}
			defer service.Close()
			direction := func(dst, src net.Conn, pass func(io.Writer, io.Reader) error) chan bool {
				done := make(chan bool)
				go func() {
					defer close(done)
					if pass(dst, src) != nil {
						dst.(*net.TCPConn).SetLinger(0)
						dst.Close()
					} else {
						dst.(*net.TCPConn).CloseWrite()
					}
				}()
				return done
			}
			plain := func(dst io.Writer, src io.Reader) error {
				_, err := io.Copy(dst, src)
				return err
			}
			toService, toClient := plain, plain
			if up {
				toService = pass
			} else {
				toClient = pass
			}
			first, second := direction(service, client, toService), direction(client, service, toClient)
			<-first
			<-second
		}()
		conn, err := namespace.Dial(t.Context(), "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		return conn.(*net.TCPConn)
	}

	for _, tt := range []struct {
		name string
		pass func(dst io.Writer, src io.Reader) error
		want error // of who receives the content
	}{
		{"as it is", func(dst io.Writer, src io.Reader) error {
			_, err := io.Copy(dst, src)
			return err
		}, nil},
		{"ended early", func(dst io.Writer, src io.Reader) error {
			_, err := io.CopyN(dst, src, size/2)
			return err
		}, ErrCut},
		{"reset", func(dst io.Writer, src io.Reader) error {
			io.CopyN(dst, src, size/2)
			return io.ErrUnexpectedEOF
		}, syscall.ECONNRESET},
		{"a byte changed", func(dst io.Writer, src io.Reader) error {
			if _, err := io.CopyN(dst, src, size/2); err != nil {
				return err
			}
			one := make([]byte, 1)
			io.ReadFull(src, one)
			dst.Write([]byte{one[0] + 1})
			_, err := io.Copy(dst, src)
			return err
		}, ErrDiffers},
		{"a byte missing", func(dst io.Writer, src io.Reader) error {
			if _, err := io.CopyN(dst, src, size/2); err != nil {
				return err
			}
			io.ReadFull(src, make([]byte, 1))
			_, err := io.Copy(dst, src)
			return err
		}, ErrDiffers},
	} {
		for _, up := range []bool{true, false} {
			t.Run(tt.name+map[bool]string{true: ", up", false: ", down"}[up], func(t *testing.T) {
				transfer := Transfer{Up: up, Seed: 7, Size: size}
				conn := between(t, up, tt.pass)
				if err := transfer.Ask(conn); err != nil {
					t.Fatal(err)
				}
				atClient := transfer.Run(conn)
				conn.Close()
				got := <-ended
				if got.transfer != transfer {
					t.Errorf("home was asked for %+v", got.transfer)
				}
				receiver, sender := atClient, got.err
				if up {
					receiver, sender = sender, receiver
				}
				if !errors.Is(receiver, tt.want) {
					t.Errorf("who receives has %v, want %v", receiver, tt.want)
				}
				if (tt.want == nil) != (sender == nil) {
					t.Errorf("who sends has %v", sender)
				}
			})
		}
	}
}
