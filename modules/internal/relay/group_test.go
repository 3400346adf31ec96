package relay

import (
	"errors"
	"testing"
)

func TestGroupHold(t *testing.T) {
	group := Group{Max: 2}
	var releases []func()
	for range 2 {
		release, err := group.Hold()
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	for range 3 {
		if _, err := group.Hold(); !errors.Is(err, ErrTooManyStreams) {
			t.Fatalf("got %v, want %v", err, ErrTooManyStreams)
		}
	}
	if got := group.Refused(); got != 3 {
		t.Errorf("%d were refused, want 3", got)
	}
	releases[0]()
	if _, err := group.Hold(); err != nil {
		t.Errorf("there is room again: %v", err)
	}
	if _, err := group.Hold(); !errors.Is(err, ErrTooManyStreams) {
		t.Errorf("got %v, want %v", err, ErrTooManyStreams)
	}
}

func TestMaxStreams(t *testing.T) {
	for descriptors, want := range map[uint64]int{
		0:         mostStreams, // not known
		1:         1,
		1024:      170,
		20_000:    8_656,
		1 << 20:   mostStreams,
		1 << 63:   mostStreams,
		1<<64 - 1: mostStreams, // infinite
	} {
		if got := maxStreams(descriptors); got != want {
			t.Errorf("with %d descriptors it is %d, want %d", descriptors, got, want)
		}
	}
	if got := new(Group).limit(); got != maxStreams(descriptorLimit()) || got < 1 {
		t.Errorf("it is %d", got)
	}
}
