package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strconv"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// order is what a client tells home's upload service first: who sends how
// many bytes, made from which seed. The sum of SHA-256 that follows is home's,
// in hexadecimal.
type order struct {
	FromHome bool
	Seed     uint8
	Bytes    int64
}

const sumLength = 64

// slowestMiB is how long a MiB takes over a connection that is as good as
// stuck: 1 Mbit/s.
const slowestMiB = 8400 * time.Millisecond

func (w *World) startUpload(t testing.TB) {
	t.Helper()
	services.Serve(t, w.Home, ":"+strconv.Itoa(uploadPort), func(conn net.Conn) {
		// Whatever goes wrong, the client misses the sum.
		var o order
		if err := binary.Read(conn, binary.BigEndian, &o); err != nil {
			return
		}
		if o.FromHome {
			stream := services.NewStream(o.Seed, o.Bytes)
			if _, err := io.Copy(conn, stream); err == nil {
				io.WriteString(conn, stream.Sum())
			}
			return
		}
		// Not until so many bytes have come but until the client ends: a relay
		// must pass on the half-close too.
		if sum, _, err := services.SumReader(conn); err == nil {
			io.WriteString(conn, sum)
		}
	})
}

// upload sends data one way, and is done when the sum of it has come back, or
// after it: what a user waits for, with everything that lies in buffers.
func (r *run) upload(ctx context.Context) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second+time.Duration(r.traffic.MiB)*slowestMiB)
	defer cancel()
	begin := time.Now()
	conn, err := r.Client.Dial(ctx, "tcp", net.JoinHostPort(testnet.RelayIP, strconv.Itoa(uploadPort)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	// What takes too long is called a timeout, and no closed connection.
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)

	o := order{FromHome: r.traffic.From == "home", Seed: uint8(r.seed), Bytes: int64(r.traffic.MiB) << 20}
	if err := binary.Write(conn, binary.BigEndian, o); err != nil {
		return nil, err
	}
	transfer := sendTo
	if o.FromHome {
		transfer = receiveFrom
	}
	got, err := transfer(conn.(*net.TCPConn), o)
	if err != nil {
		return nil, err
	}
	sum := make([]byte, sumLength)
	if n, err := io.ReadFull(conn, sum); err != nil {
		return nil, fmt.Errorf("home's sum, after %d of %d characters: %w", n, len(sum), err)
	}
	took := time.Since(begin)
	if got != string(sum) {
		return nil, fmt.Errorf("the data have changed on their way: %s here, %s at home", got, sum)
	}
	return &result{metrics: map[string]float64{
		metricRate:    float64(o.Bytes) * 8 / took.Seconds() / 1e6,
		metricSeconds: took.Seconds(),
		metricBytes:   float64(o.Bytes),
	}}, nil
}

// sendTo sends home what was ordered, ends its direction of the connection,
// and returns the data's sum.
func sendTo(conn *net.TCPConn, o order) (sum string, err error) {
	stream := services.NewStream(o.Seed, o.Bytes)
	if sent, err := io.Copy(conn, stream); err != nil {
		return "", fmt.Errorf("after %d of %d bytes: %w", sent, o.Bytes, err)
	}
	return stream.Sum(), conn.CloseWrite()
}

// receiveFrom takes from home what was ordered and returns its sum.
func receiveFrom(conn *net.TCPConn, o order) (sum string, err error) {
	digest := services.NewDigest()
	if received, err := io.CopyN(digest, conn, o.Bytes); err != nil {
		return "", fmt.Errorf("after %d of %d bytes: %w", received, o.Bytes, err)
	}
	return digest.Sum(), nil
}
