package services

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// Transfer is a bulk transfer over raw TCP of which both ends know every byte:
// the content is a Stream. Whoever receives it compares it byte by byte, and says
// at the end what came, as a Hasher does.
//
// The end of a connection is in order only after that. A transfer that was cut
// and yet ended with FIN is ErrCut.
type Transfer struct {
	Up   bool // from the client to the service
	Seed byte
	Size int64

	// Rate is of the service's end, in bytes per second; 0: any.
	Rate int64
}

var (
	// ErrCut is an orderly end of a connection before the end of a transfer:
	// who did not know the size would take what came for all there is.
	ErrCut = errors.New("an orderly end too early")

	// ErrDiffers is a byte that was not sent.
	ErrDiffers = errors.New("other bytes came than were sent")
)

// greeting is what the service says before a transfer begins, so that the client
// knows that it has got through.
const greeting = "go\n"

// TransferConn is a client's connection to Transfers.
type TransferConn interface {
	net.Conn
	CloseWrite() error
}

// Ask says to the service what is to come, and returns when it has heard it.
func (t Transfer) Ask(conn TransferConn) error {
	way := "down"
	if t.Up {
		way = "up"
	}
	if _, err := fmt.Fprintf(conn, "%s %d %d %d\n", way, t.Seed, t.Size, t.Rate); err != nil {
		return err
	}
	answer := make([]byte, len(greeting))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return cut(err)
	}
	if string(answer) != greeting {
		return ErrDiffers
	}
	return nil
}

// Run carries the transfer out after Ask. It does not close the connection.
func (t Transfer) Run(conn TransferConn) error {
	t.Rate = 0
	if t.Up {
		return t.send(conn, conn)
	}
	return t.receive(conn, conn)
}

// send sends the content, ends that direction, and expects the other end to say
// that it has it.
func (t Transfer) send(conn TransferConn, in io.Reader) error {
	stream := NewStream(t.Seed, t.Size)
	if _, err := io.Copy(paced{conn, t.Rate}, stream); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(in)
	switch want := fmt.Sprintf("%s %d\n", stream.Sum(), t.Size); {
	case err != nil:
		return err
	case string(answer) == want:
		return nil
	case bytes.HasPrefix([]byte(want), answer):
		return ErrCut
	default:
		return fmt.Errorf("%w: of %q came %q", ErrDiffers, want, answer)
	}
}

// receive receives the content up to the end of that direction, and says what
// came.
func (t Transfer) receive(conn TransferConn, in io.Reader) error {
	stream := NewStream(t.Seed, t.Size)
	got, want := make([]byte, 32<<10), make([]byte, 32<<10)
	var received int64
	for {
		n, err := in.Read(got)
		pace(n, t.Rate)
		m, _ := io.ReadFull(stream, want[:n])
		if !bytes.Equal(got[:n], want[:m]) {
			return fmt.Errorf("%w: among bytes %d to %d of %d", ErrDiffers, received, received+int64(n), t.Size)
		}
		received += int64(n)
		if err == io.EOF && received < t.Size {
			return fmt.Errorf("%w: after %d of %d bytes", ErrCut, received, t.Size)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(conn, "%s %d\n", stream.Sum(), received); err != nil {
		return err
	}
	return conn.CloseWrite()
}

// paced is a writer that keeps to a rate.
type paced struct {
	io.Writer
	rate int64
}

func (p paced) Write(b []byte) (int, error) {
	n, err := p.Writer.Write(b)
	pace(n, p.rate)
	return n, err
}

// pace waits for as long as n bytes take.
func pace(n int, rate int64) {
	if rate > 0 {
		time.Sleep(time.Duration(n) * time.Second / time.Duration(rate))
	}
}

// cut makes an end of file ErrCut.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrCut
	}
	return err
}

// Transfers is the service that Transfers talk to. It tells ended how each went,
// as far as it can know, from a goroutine of the connection's.
func Transfers(t testing.TB, namespace *testnet.Namespace, address string, ended func(client net.Addr, transfer Transfer, err error)) {
	t.Helper()
	Serve(t, namespace, address, func(accepted net.Conn) {
		conn, in := accepted.(*net.TCPConn), bufio.NewReader(accepted)
		var transfer Transfer
		var way string
		header, err := in.ReadString('\n')
		if header == "" {
			return // nobody who wants something
		}
		if err == nil {
			_, err = fmt.Sscanf(header, "%s %d %d %d\n", &way, &transfer.Seed, &transfer.Size, &transfer.Rate)
		}
		if err == nil {
			_, err = io.WriteString(conn, greeting)
		}
		if transfer.Up = way == "up"; err == nil && transfer.Up {
			err = transfer.receive(conn, in)
		} else if err == nil {
			err = transfer.send(conn, in)
		}
		if err != nil {
			_ = conn.SetLinger(0) // whoever cuts a transfer has to say so
		}
		ended(conn.RemoteAddr(), transfer, cut(err))
	})
}
