package lab

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// hostDrops counts the packets that the hosts themselves have dropped since
// they are there: in full UDP buffers (ours and the contenders'), in devices'
// queues, and in those of the CPUs, which this machine's other users share.
// A measurement in which the hosts drop says more about them than about the
// line.
func (w *World) hostDrops() (dropped float64, err error) {
	for _, namespace := range append(w.hosts(), w.Core, w.Router) {
		enterErr := namespace.Do(func() error {
			for _, part := range []struct {
				file  string
				count func(string) (float64, error)
			}{
				{"/proc/thread-self/net/snmp", udpDrops},
				{"/proc/thread-self/net/dev", deviceDrops},
			} {
				content, err := os.ReadFile(part.file)
				if err != nil {
					return err
				}
				n, err := part.count(string(content))
				if err != nil {
					return fmt.Errorf("%s: %w", part.file, err)
				}
				dropped += n
			}
			return nil
		})
		err = errors.Join(err, enterErr)
	}
	content, readErr := os.ReadFile("/proc/net/softnet_stat")
	if readErr != nil {
		return 0, errors.Join(err, readErr)
	}
	n, parseErr := backlogDrops(string(content))
	return dropped + n, errors.Join(err, parseErr)
}

// udpDrops reads UDP's buffer errors out of net/snmp, which has two lines for
// each protocol: names, then values.
func udpDrops(snmp string) (dropped float64, err error) {
	var names []string
	for line := range strings.Lines(snmp) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Udp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name != "RcvbufErrors" && name != "SndbufErrors" {
				continue
			}
			n, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return 0, err
			}
			dropped += n
		}
	}
	return dropped, nil
}

// deviceDrops reads both directions' drops out of net/dev: the fourth column
// after the name, and the twelfth.
func deviceDrops(dev string) (dropped float64, err error) {
	for line := range strings.Lines(dev) {
		_, counters, found := strings.Cut(line, ":")
		fields := strings.Fields(counters)
		if !found || len(fields) < 12 {
			continue // the headings
		}
		for _, field := range []string{fields[3], fields[11]} {
			n, err := strconv.ParseFloat(field, 64)
			if err != nil {
				return 0, err
			}
			dropped += n
		}
	}
	return dropped, nil
}

// backlogDrops reads the second column of softnet_stat, which is hexadecimal
// and has a line for each CPU.
func backlogDrops(stat string) (dropped float64, err error) {
	for line := range strings.Lines(stat) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.ParseUint(fields[1], 16, 64)
		if err != nil {
			return 0, err
		}
		dropped += float64(n)
	}
	return dropped, nil
}
