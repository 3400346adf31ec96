package tests

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/homeward-relay/homeward/tests/testnet"
)

// soakFlow is a client of UDP.
type soakFlow struct {
	home     soakHome
	number   uint64
	answered atomic.Int64 // when the last datagram was sent that was answered, UnixNano
}

// flow keeps a client of UDP and uses it.
func (l *workload) flow(home soakHome) {
	f := &soakFlow{home: home, number: uint64(len(l.flows) + 1)}
	l.flows = append(l.flows, f)
	l.running.Go(func() {
		var conn net.Conn
		defer func() {
			if conn != nil {
				conn.Close()
			}
		}()
		for sequence := uint64(0); l.rest(l.ctx, 200*time.Millisecond); {
			if l.paused.Load() {
				continue
			}
			// A new one only if the relay is elsewhere: else the same port.
			address := l.w.Client.Address(testnet.Endpoint)
			if conn == nil || conn.RemoteAddr().(*net.UDPAddr).IP.String() != address {
				if conn != nil {
					conn.Close()
				}
				var err error
				if conn, err = l.w.Client.Dial(l.ctx, "udp", testnet.Endpoint+":"+home.datagrams); err != nil {
					conn = nil
					continue
				}
				reading := conn
				l.running.Go(func() { l.readFlow(f, reading) })
			}
			sequence++
			// An error is one of a datagram before.
			conn.Write(f.datagram(sequence, time.Now().UnixNano()))
			l.count(func(n *soakCounts) { n.datagrams++ })
		}
	})
}

// flowHeader is a client's number, a datagram's, and when it was sent. What
// follows is random bytes that follow from these.
const flowHeader = 24

func (f *soakFlow) datagram(sequence uint64, at int64) []byte {
	random := rand.New(rand.NewPCG(f.number, sequence))
	datagram := make([]byte, flowHeader+random.IntN(1100))
	binary.BigEndian.PutUint64(datagram, f.number)
	binary.BigEndian.PutUint64(datagram[8:], sequence)
	binary.BigEndian.PutUint64(datagram[16:], uint64(at))
	for i := flowHeader; i < len(datagram); i++ {
		datagram[i] = byte(random.Uint32())
	}
	return datagram
}

// readFlow compares what a client gets with what it has sent: each may be lost, but
// nothing else may come.
func (l *workload) readFlow(f *soakFlow, conn net.Conn) {
	buffer := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // of one before: nobody was there
		}
		got := buffer[:n]
		if n < flowHeader {
			l.fail("UDP client %d of %s got %q", f.number, f.home.name, got)
			continue
		}
		sequence, at := binary.BigEndian.Uint64(got[8:]), int64(binary.BigEndian.Uint64(got[16:]))
		if !bytes.Equal(got, f.datagram(sequence, at)) {
			l.fail("UDP client %d of %s got other bytes than it sent: of client %d, datagram %d", f.number, f.home.name, binary.BigEndian.Uint64(got), sequence)
			continue
		}
		l.count(func(n *soakCounts) { n.answers++ })
		for last := f.answered.Load(); at > last && !f.answered.CompareAndSwap(last, at); last = f.answered.Load() {
		}
	}
}
