package wgbind

import (
	"encoding/binary"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	// callersMax is how many of the last calls are remembered, for as long as it
	// takes to answer one.
	callersMax = 256

	// callerLasts is how long the first who has called with an index has it.
	callerLasts = 5 * time.Second
)

// caller is where an initiation has come from.
type caller struct {
	index    uint32 // the sender's
	at       time.Time
	endpoint conn.StdNetEndpoint
}

// called notes where an initiation has come from. r.mu is held.
func (r *resender) called(packet []byte, from conn.Endpoint) {
	endpoint, ok := from.(*conn.StdNetEndpoint)
	if !ok {
		return
	}
	now, index := time.Now(), binary.LittleEndian.Uint32(packet[4:])
	c := &r.callers[index%callersMax]
	// Somebody on the way may send a copy from elsewhere. As a rule it comes later.
	if c.index == index && now.Sub(c.at) < callerLasts {
		return
	}
	*c = caller{index, now, *endpoint}
}

// callerOf returns where the initiation came from that a response answers, if that is not
// endpoint, or nil. wireguard-go sends the response to where the peer was last heard, and
// that may have changed since: a peer that tries another address goes on to send from the
// one it has, and must learn that it is heard from the other. r.mu is held.
func (r *resender) callerOf(response []byte, endpoint conn.Endpoint) conn.Endpoint {
	index := binary.LittleEndian.Uint32(response[8:])
	c := &r.callers[index%callersMax]
	if c.index != index || time.Since(c.at) > callerLasts || c.endpoint.DstToString() == endpoint.DstToString() {
		return nil
	}
	found := c.endpoint
	return &found
}
