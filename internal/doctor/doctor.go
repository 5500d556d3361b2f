// Package doctor looks at a host and says what is not well: is it fit for VMs,
// is what keeps them apart as it was installed. A check is a small function of
// facts it is given, and its answer a small value, api.Check. Nothing here
// changes anything.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"banger/api"
)

// Question is what is asked, usually for one check of the same id.
type Question struct {
	ID string
	// Why it matters, for a person.
	Why string
	// Ask should end with the context; if it does not, nobody waits for it.
	Ask func(context.Context) []api.Check
}

// Ask asks all questions at the same time and returns the checks in the order
// of the questions. One that has no answer in time is a warning.
func Ask(ctx context.Context, limit time.Duration, questions []Question) []api.Check {
	answers := make([][]api.Check, len(questions))
	var wg sync.WaitGroup
	for i, q := range questions {
		wg.Go(func() { answers[i] = ask(ctx, limit, q) })
	}
	wg.Wait()
	all := []api.Check{}
	for _, a := range answers {
		all = append(all, a...)
	}
	return all
}

func ask(ctx context.Context, limit time.Duration, q Question) []api.Check {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer := make(chan []api.Check, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil { // no reason to end bangerd
				answer <- []api.Check{Warn("report it as a bug, with the log of bangerd", "the check itself failed: %v", r).check(q.ID, q.Why)}
			}
		}()
		answer <- q.Ask(ctx)
	}()
	select {
	case a := <-answer:
		return a
	case <-ctx.Done():
		return []api.Check{Warn("look again; if it stays so, see what hangs", "there was no answer within %s", limit).check(q.ID, q.Why)}
	}
}

// Finding is what was found and what can be done: a check without its name.
type Finding struct {
	Status api.CheckStatus
	Found  string
	Fix    string
	Repair string
}

// Pass says that all is well.
func Pass(format string, args ...any) Finding {
	return Finding{Status: api.CheckPass, Found: fmt.Sprintf(format, args...)}
}

// Warn says what to know or to mend soon.
func Warn(fix, format string, args ...any) Finding {
	return Finding{Status: api.CheckWarn, Found: fmt.Sprintf(format, args...), Fix: fix}
}

// Fail says what keeps VMs from running, or from being isolated as promised.
func Fail(fix, format string, args ...any) Finding {
	return Finding{Status: api.CheckFail, Found: fmt.Sprintf(format, args...), Fix: fix}
}

func (f Finding) check(id, why string) api.Check {
	return api.Check{ID: id, Status: f.Status, Found: f.Found, Why: why, Fix: f.Fix, Repair: f.Repair}
}

// One is a question with one answer.
func One(id, why string, look func(context.Context) Finding) Question {
	return Question{ID: id, Why: why, Ask: func(ctx context.Context) []api.Check {
		return []api.Check{look(ctx).check(id, why)}
	}}
}

// together makes one finding of several. What is well is not told where
// something is not.
func together(all []Finding) (one Finding) {
	grave := []api.CheckStatus{api.CheckPass, api.CheckWarn, api.CheckFail}
	worst := 0
	for _, f := range all {
		worst = max(worst, slices.Index(grave, f.Status))
	}
	one.Status = grave[worst]
	var found, fixes, repairs []string
	for _, f := range all {
		if one.Status != api.CheckPass && f.Status == api.CheckPass {
			continue
		}
		found = append(found, f.Found)
		fixes = appendNew(fixes, f.Fix)
		repairs = appendNew(repairs, f.Repair)
	}
	one.Found, one.Fix, one.Repair = strings.Join(found, "; "), strings.Join(fixes, "; "), strings.Join(repairs, "; ")
	return one
}

func appendNew(all []string, s string) []string {
	if s == "" || slices.Contains(all, s) {
		return all
	}
	return append(all, s)
}
