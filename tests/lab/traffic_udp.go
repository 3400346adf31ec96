package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/homeward-relay/homeward/tests/services"
	"github.com/homeward-relay/homeward/tests/testnet"
)

const (
	// numberLength is the smallest datagram's size: it has its number.
	numberLength = 8

	// largestDatagram is what IPv4 has room for.
	largestDatagram = 65507

	// lateness is how long a datagram is waited for after the last was sent. A
	// voice is long past by then.
	lateness = time.Second
)

func (w *World) startDatagrams(t testing.TB) {
	t.Helper()
	services.Echo(t, w.Home, "", ":"+strconv.Itoa(datagramPort))
}

// datagrams sends datagrams at even distances, as a voice or a game does, and
// watches which of them come back, and when.
func (r *run) datagrams(ctx context.Context) (*result, error) {
	// Not connected: what a relay refuses must be lost, and no error of the
	// next datagram.
	var conn *net.UDPConn
	err := r.Client.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()

	relay := netip.AddrPortFrom(netip.MustParseAddr(testnet.RelayIP), datagramPort)
	count, size := r.traffic.Seconds*r.traffic.Rate, r.traffic.Size
	begin := time.Now()
	sent := make([]time.Time, count)
	for n := range sent {
		sent[n] = begin.Add(time.Duration(n) * time.Second / time.Duration(r.traffic.Rate))
	}
	if err := conn.SetReadDeadline(sent[count-1].Add(lateness)); err != nil {
		return nil, err
	}
	var sending sync.WaitGroup
	defer sending.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	sending.Go(func() {
		for n := range sent {
			if pause(ctx, time.Until(sent[n])) != nil {
				return
			}
			// One that cannot be sent will be missed.
			conn.WriteToUDPAddrPort(datagram(n, size), relay)
		}
	})

	answers := answers{seen: make([]bool, count), size: size}
	var took []time.Duration
	var gap time.Duration
	last := begin
	buf := make([]byte, largestDatagram)
	for len(took) < count {
		length, from, err := conn.ReadFromUDPAddrPort(buf)
		now := time.Now()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("after %d of %d datagrams: %w", len(took), count, err)
		}
		if from != relay {
			continue // as a client's own router would drop it
		}
		n, isNew, err := answers.take(buf[:length])
		if err != nil {
			return nil, err
		}
		if isNew {
			took = append(took, now.Sub(sent[n]))
			gap = max(gap, now.Sub(last))
			last = now
		}
	}
	found, err := latencies(took)
	if err != nil {
		return nil, fmt.Errorf("of %d datagrams: %w", count, err)
	}
	found.metrics[metricLostDatagrams] = 100 * float64(count-len(took)) / float64(count)
	found.metrics[metricGap] = milliseconds(max(gap, sent[count-1].Sub(last)))
	return found, nil
}

// datagram is the one of a number: the number, and a filling that goes with
// it.
func datagram(number, size int) []byte {
	d := bytes.Repeat([]byte{byte(number)}, size)
	binary.BigEndian.PutUint64(d, uint64(number))
	return d
}

// answers knows which datagrams have come back.
type answers struct {
	seen []bool
	size int
}

// take returns an answer's number and whether it is the first of it. An answer
// to nothing that was sent is an error.
func (a *answers) take(answer []byte) (number int, isNew bool, err error) {
	if len(answer) == a.size {
		if n := binary.BigEndian.Uint64(answer); n < uint64(len(a.seen)) && bytes.Equal(answer, datagram(int(n), a.size)) {
			isNew = !a.seen[n]
			a.seen[n] = true
			return int(n), isNew, nil
		}
	}
	return 0, false, fmt.Errorf("a datagram of %d bytes came back that was not sent: % .16x", len(answer), answer)
}
