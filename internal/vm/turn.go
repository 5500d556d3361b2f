package vm

import (
	"context"
	"time"
)

// turnTime is how long one guest may keep others waiting.
const turnTime = 100 * time.Millisecond

// turn lets guests be connected to one after the other. Each wakes up for it, and
// all that run would at once when bangerd starts and has its first questions to
// answer.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take returns when the others have had theirs. The turn ends after
// turnTime, or when leave was called and the host had as much time for other things
// as the guest took.
func (t turn) take(ctx context.Context) (leave func(), err error) {
	select {
	case t <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	begun, end := time.Now(), time.AfterFunc(turnTime, func() { <-t })
	return func() {
		if end.Stop() {
			end.Reset(min(time.Since(begun), turnTime))
		}
	}, nil
}
