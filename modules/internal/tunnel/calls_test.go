package tunnel

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestCallsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCalls()
		defer c.close()
		begin := time.Now()
		var made []time.Duration // changed by the goroutine of the calls alone
		call := func() { made = append(made, time.Since(begin)) }
		for range 1000 {
			c.add(call)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if len(made) != 1000 {
			t.Fatalf("%d calls were made", len(made))
		}
		for i, at := range made {
			if at != time.Duration(i)*callEvery {
				t.Fatalf("call %d was made after %v", i, at)
			}
		}
		// One that comes alone waits for nothing, and keeps its distance from the
		// next.
		made = nil
		for range 2 {
			c.add(call)
			synctest.Wait()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if want := []time.Duration{5 * time.Second, 5*time.Second + callEvery}; !slices.Equal(made, want) {
			t.Errorf("calls were made after %v, want %v", made, want)
		}
	})
}

func TestClosedCallsAreNotMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCalls()
		made := 0
		for range 10 {
			c.add(func() { made++ })
		}
		synctest.Wait()
		c.close()
		c.add(func() { made++ })
		time.Sleep(time.Second)
		if made != 1 {
			t.Errorf("%d calls were made", made)
		}
	})
}
