package vm

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestTurnsFollowEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turn := newTurn()
		begun := time.Now()
		first, err := turn.take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(turnTime / 4)
			first()
		}()
		if _, err := turn.take(t.Context()); err != nil || time.Since(begun) != turnTime/2 {
			t.Errorf("the second had its turn after %s: %v", time.Since(begun), err)
		}
		first() // too often takes nobody's turn away
		// The second does not leave.
		third, err := turn.take(t.Context())
		if err != nil || time.Since(begun) != turnTime/2+turnTime {
			t.Errorf("the third had its turn after %s: %v", time.Since(begun), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := turn.take(ctx); err == nil {
			t.Error("a turn for one who has left")
		}
		third()
	})
}
