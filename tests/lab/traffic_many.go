package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

// What a client tells home's stream service with its first byte.
const (
	takeStream = 't' // take what comes
	sendStream = 's' // send without end
)

// streamBuffer is what the ends of a stream write and read at once.
const streamBuffer = 64 << 10

func (w *World) startStreams(t testing.TB) {
	t.Helper()
	services.Serve(t, w.Home, ":"+strconv.Itoa(streamPort), func(conn net.Conn) {
		buf := make([]byte, streamBuffer)
		if _, err := io.ReadFull(conn, buf[:1]); err != nil {
			return
		}
		if buf[0] == sendStream {
			// Until the client goes.
			for {
				if _, err := conn.Write(buf); err != nil {
					return
				}
			}
		}
		for {
			n, err := conn.Read(buf)
			w.taken.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
}

// manyRampUp is how long connections have to become busy.
const manyRampUp = time.Second

// many opens connections and keeps all of them busy. What counts is what
// arrives in the traffic's time, which begins when all are busy; data in
// between at the beginning count for those at the end.
func (r *run) many(ctx context.Context) (*result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conns := make([]net.Conn, r.traffic.Streams)
	var ends sync.WaitGroup
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
			}
		}
		ends.Wait()
	}()
	order := byte(takeStream)
	if r.traffic.From == "home" {
		order = sendStream
	}
	if failed, err := inParallel(len(conns), openAtOnce, func(n int) (err error) {
		dialCtx, cancel := context.WithTimeout(ctx, answerWithin)
		defer cancel()
		conns[n], err = r.Client.Dial(dialCtx, "tcp", net.JoinHostPort(testnet.RelayIP, strconv.Itoa(streamPort)))
		return err
	}); err != nil {
		return nil, fmt.Errorf("%d of %d connections could not be opened: %w", failed, len(conns), err)
	}

	arrived := &r.taken
	if order == sendStream {
		arrived = new(atomic.Int64)
	}
	var lost atomic.Int64
	for _, conn := range conns {
		ends.Go(func() {
			if err := stream(conn, order, arrived); err != nil && !errors.Is(err, net.ErrClosed) {
				lost.Add(1)
			}
		})
	}
	if err := pause(ctx, manyRampUp); err != nil {
		return nil, err
	}
	before, begin := arrived.Load(), time.Now()
	if err := pause(ctx, time.Duration(r.traffic.Seconds)*time.Second); err != nil {
		return nil, err
	}
	bytes, took := float64(arrived.Load()-before), time.Since(begin)
	if bytes == 0 {
		return nil, errors.New("nothing arrived")
	}
	return &result{metrics: map[string]float64{
		metricRate:  bytes * 8 / took.Seconds() / 1e6,
		metricBytes: bytes,
		metricLost:  float64(lost.Load()),
	}}, nil
}

// stream gives the order and then sends, or receives into a count, until the
// connection ends.
func stream(conn net.Conn, order byte, received *atomic.Int64) error {
	if _, err := conn.Write([]byte{order}); err != nil {
		return err
	}
	buf := make([]byte, streamBuffer)
	for {
		if order == takeStream {
			if _, err := conn.Write(buf); err != nil {
				return err
			}
		} else {
			n, err := conn.Read(buf)
			received.Add(int64(n))
			if err != nil {
				return err
			}
		}
	}
}
