package relay

import "net"

// maxQueued and maxQueuedBytes bound the datagrams that wait for the upstream's
// socket, in number and in bytes: while it is being dialed, which lasts until
// the tunnel's handshake at the longest, and while the tunnel has more to send
// than it can. Whoever speaks UDP repeats what got lost.
const (
	maxQueued      = 64
	maxQueuedBytes = 64 << 10
)

// Send queues a copy of a datagram for the upstream. It never fails and never
// waits, whatever the tunnel does: who calls it may have to serve others.
func (f *Flow) Send(datagram []byte) {
	f.touch()
	f.mu.Lock()
	full := len(f.queue) >= maxQueued || len(f.queue) > 0 && f.queuedBytes+len(datagram) > maxQueuedBytes
	if f.reason != "" || full {
		f.mu.Unlock()
		f.dropped.Add(1)
		return
	}
	f.queue = append(f.queue, queued(datagram))
	f.queuedBytes += len(datagram)
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// queued copies a datagram, into a lent buffer unless it is a rare large one.
func queued(datagram []byte) *[]byte {
	if len(datagram) > smallBuffer {
		large := append([]byte(nil), datagram...)
		return &large
	}
	buf := smallBuffers.Get()
	*buf = append((*buf)[:0], datagram...)
	return buf
}

// unqueue gives a buffer of queued back.
func unqueue(buf *[]byte) {
	if cap(*buf) == smallBuffer {
		*buf = (*buf)[:smallBuffer]
		smallBuffers.Put(buf)
	}
}

// sendQueue sends what is in the queue, for as long as the flow lives.
func (f *Flow) sendQueue(up net.Conn) {
	var batch []*[]byte
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-f.wake:
		}
		f.mu.Lock()
		batch, f.queue, f.queuedBytes = f.queue, batch[:0], 0
		f.mu.Unlock()
		for i, buf := range batch {
			err := f.write(up, *buf)
			unqueue(buf)
			batch[i] = nil
			if ended(err) {
				f.end(UpstreamFailed, err)
			}
		}
	}
}

// write sends one datagram to the upstream. Of its errors only a closed socket
// is for good: ECONNREFUSED, say, reports an ICMP error about an earlier
// datagram, and the service may be back.
func (f *Flow) write(up net.Conn, datagram []byte) error {
	out := datagram
	if len(f.header) > 0 {
		buf := Datagrams.Get()
		defer Datagrams.Put(buf)
		if len(f.header)+len(datagram) > len(*buf) {
			f.dropped.Add(1)
			return nil
		}
		out = append(append((*buf)[:0], f.header...), datagram...)
	}
	// Counted first, so that whoever has received it finds it counted.
	f.sent.Add(uint64(len(datagram)))
	f.sentDatagrams.Add(1)
	if _, err := up.Write(out); err != nil {
		f.sent.Add(-uint64(len(datagram)))
		f.sentDatagrams.Add(^uint64(0))
		f.dropped.Add(1)
		return err
	}
	return nil
}
