// Package line emulates a network line between two hosts: per direction a
// rate, a delay with jitter, a queue of bounded bytes or time, random and
// burst loss, reordering, duplication, outages and a path MTU. It is a pair of
// TUN devices with this process between them, so it works where the kernel has
// no netem and no fq_codel.
package line

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"
)

// Impairment is what one direction of a line does to packets. The zero value
// is a perfect line: no loss, no delay, any rate.
type Impairment struct {
	// Rate in bits of IP packets per second. 0: unlimited.
	Rate int64 `json:"rate,omitempty"`

	// Delay is what each packet takes after it has left the queue.
	Delay Duration `json:"delay,omitempty"`

	// Jitter is added to Delay: uniform between 0 and this. Order is kept.
	Jitter Duration `json:"jitter,omitempty"`

	// QueueBytes and QueueTime bound the drop-tail queue before the rate: in
	// bytes, or in how long its last packet waits. Whichever is less counts;
	// with neither the queue holds 100 ms.
	QueueBytes int64    `json:"queue_bytes,omitempty"`
	QueueTime  Duration `json:"queue_time,omitempty"`

	// Loss is the part of packets that is lost at random, 0 to 1.
	Loss float64 `json:"loss,omitempty"`

	// BurstLoss is the Gilbert-Elliott model: loss that comes in bursts.
	BurstLoss *Bursts `json:"burst_loss,omitempty"`

	// Reorder is the part of packets that is overtaken: each is held back by
	// ReorderDelay (default: 1 ms) beyond its time.
	Reorder      float64  `json:"reorder,omitempty"`
	ReorderDelay Duration `json:"reorder_delay,omitempty"`

	// Duplicate is the part of packets that arrives twice.
	Duplicate float64 `json:"duplicate,omitempty"`

	// Outage loses everything.
	Outage bool `json:"outage,omitempty"`

	// MTU is the size of the largest IP packet that passes. 0: any. A larger
	// packet is dropped, and unless NoICMP is set its sender is told (RFC 792,
	// RFC 4443), as a router on the path would.
	MTU    int  `json:"mtu,omitempty"`
	NoICMP bool `json:"no_icmp,omitempty"`
}

// Bursts are the probabilities, per packet, of a line that is good or bad.
type Bursts struct {
	ToBad  float64 `json:"to_bad"`  // from good to bad
	ToGood float64 `json:"to_good"` // from bad to good
	Loss   float64 `json:"loss"`    // of a packet while bad
}

// Duration is a time.Duration that is a text such as "31ms" in JSON.
type Duration time.Duration

// MarshalJSON writes the duration as text.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON reads a duration from text.
func (d *Duration) UnmarshalJSON(raw []byte) error {
	var text string
	if err := json.Unmarshal(raw, &text); err != nil {
		return err
	}
	parsed, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	*d = Duration(parsed)
	return nil
}

const (
	defaultQueueTime    = 100 * time.Millisecond
	defaultReorderDelay = time.Millisecond
)

// Check says what is impossible about the impairment.
func (i *Impairment) Check() error {
	for _, part := range []struct {
		name  string
		value float64
	}{{"loss", i.Loss}, {"reorder", i.Reorder}, {"duplicate", i.Duplicate}} {
		if part.value < 0 || part.value > 1 {
			return fmt.Errorf("%s is %g; it is a part, from 0 to 1", part.name, part.value)
		}
	}
	if i.Rate < 0 || i.Delay < 0 || i.Jitter < 0 || i.QueueBytes < 0 || i.QueueTime < 0 || i.ReorderDelay < 0 || i.MTU < 0 {
		return fmt.Errorf("a rate, time, size or MTU is negative")
	}
	return nil
}

// Counters count packets of one direction.
type Counters struct {
	Passed, PassedBytes   uint64
	Lost                  uint64 // at random, in bursts or by outage
	Dropped               uint64 // by the full queue
	TooLarge              uint64 // for the MTU
	Duplicated, Reordered uint64
	QueueMax              time.Duration // the longest wait for the rate
	LatestDelivery        time.Duration // the worst lateness of the emulator itself
	DelayedDeliveries     uint64        // packets that it delivered more than 1 ms late
}

// scheduler decides what happens to each packet of one direction. It knows
// nothing of sockets or of the real time, so that the same packets at the same
// times with the same seed always fare the same.
type scheduler struct {
	impairment Impairment
	random     *rand.Rand
	bad        bool          // the state of BurstLoss
	free       time.Duration // when the rate has sent all that is queued
	last       time.Duration // the delivery of the packet before, for order
	counters   Counters
}

func newScheduler(impairment Impairment, seed uint64) *scheduler {
	return &scheduler{impairment: impairment, random: rand.New(rand.NewPCG(seed, 0x6c696e65))}
}

// change puts another impairment in force. What is queued keeps its times.
func (s *scheduler) change(impairment Impairment) { s.impairment = impairment }

// deliveries are the times at which a packet arrives: none, one or two.
type deliveries struct {
	at [2]time.Duration
	n  int
}

// offer decides about a packet of size bytes that comes at now. Each random
// decision draws its number whether or not it matters, so that one setting
// does not shift the others' sequence.
func (s *scheduler) offer(now time.Duration, size int) (d deliveries) {
	i := &s.impairment
	loss, burst, change, reorder, duplicate, jitter := s.random.Float64(), s.random.Float64(), s.random.Float64(), s.random.Float64(), s.random.Float64(), s.random.Float64()

	if b := i.BurstLoss; b != nil {
		if s.bad {
			s.bad = change >= b.ToGood
		} else {
			s.bad = change < b.ToBad
		}
	} else {
		s.bad = false
	}

	// The queue comes before the loss: a packet that the line loses has still
	// used the line.
	leave, ok := s.transmit(now, size)
	switch {
	case !ok:
		s.counters.Dropped++
		return d
	case i.Outage, loss < i.Loss, s.bad && burst < i.BurstLoss.Loss:
		s.counters.Lost++
		return d
	}
	at := leave + time.Duration(i.Delay) + time.Duration(jitter*float64(i.Jitter))
	if reorder < i.Reorder {
		hold := time.Duration(i.ReorderDelay)
		if hold == 0 {
			hold = defaultReorderDelay
		}
		at += hold
		s.counters.Reordered++
	} else {
		at = max(at, s.last)
		s.last = at
	}
	d.at[0], d.n = at, 1
	s.counters.Passed++
	s.counters.PassedBytes += uint64(size)
	if duplicate < i.Duplicate {
		d.at[1], d.n = at, 2
		s.counters.Duplicated++
	}
	return d
}

// transmit puts a packet into the queue and returns when its last bit leaves.
// The queue is a virtual clock: how late this process wakes up does not change
// the rate.
func (s *scheduler) transmit(now time.Duration, size int) (leave time.Duration, ok bool) {
	i := &s.impairment
	if i.Rate == 0 {
		return now, true
	}
	wait := max(0, s.free-now)
	limit := time.Duration(i.QueueTime)
	if i.QueueBytes > 0 {
		if byBytes := airtime(i.QueueBytes, i.Rate); limit == 0 || byBytes < limit {
			limit = byBytes
		}
	}
	if limit == 0 {
		limit = defaultQueueTime
	}
	if wait > limit {
		return 0, false
	}
	s.counters.QueueMax = max(s.counters.QueueMax, wait)
	s.free = now + wait + airtime(int64(size), i.Rate)
	return s.free, true
}

// airtime is how long size bytes take at rate bits per second.
func airtime(size, rate int64) time.Duration {
	return time.Duration(float64(size*8) / float64(rate) * float64(time.Second))
}
