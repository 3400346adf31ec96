package lab

import (
	"slices"
	"testing"
)

func TestScope(t *testing.T) {
	var done []int
	t.Run("inside", func(t *testing.T) {
		s := newScope(t)
		s.Cleanup(func() { done = append(done, 1) })
		s.Cleanup(func() {
			done = append(done, 2)
			s.Cleanup(func() { done = append(done, 3) })
		})
		s.end()
		if !slices.Equal(done, []int{2, 3, 1}) {
			t.Errorf("cleaned up in the order %v", done)
		}
		s.Cleanup(func() { done = append(done, 4) })
	})
	if !slices.Equal(done, []int{2, 3, 1, 4}) {
		t.Errorf("at the end: %v", done)
	}
}
