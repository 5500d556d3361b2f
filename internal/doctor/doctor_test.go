package doctor

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"banger/api"
)

func TestAskIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		questions := []Question{
			One("deaf", "it matters", func(context.Context) Finding { <-release; return Pass("late") }),
			One("slow", "", func(context.Context) Finding { time.Sleep(3 * time.Second); return Pass("there") }),
			{ID: "many", Ask: func(context.Context) []api.Check { return []api.Check{{ID: "a"}, {ID: "b"}} }},
			One("polite", "", func(ctx context.Context) Finding { <-ctx.Done(); return Warn("", "gave up") }),
		}
		begun := time.Now()
		got := Ask(t.Context(), 10*time.Second, questions)
		if d := time.Since(begun); d != 10*time.Second {
			t.Errorf("took %s", d)
		}
		var ids []string
		for _, c := range got {
			ids = append(ids, c.ID)
		}
		if strings.Join(ids, " ") != "deaf slow a b polite" {
			t.Errorf("order: %v", ids)
		}
		if c := got[0]; c.Status != api.CheckWarn || c.Why != "it matters" || !strings.Contains(c.Found, "no answer within 10s") {
			t.Errorf("one that hangs: %+v", c)
		}
		if c := got[1]; c.Status != api.CheckPass || c.Found != "there" {
			t.Errorf("one that is slow: %+v", c)
		}
		if c := got[4]; c.Status != api.CheckWarn {
			t.Errorf("one that gives up: %+v", c)
		}
	})
}

func TestOneThatPanicsEndsNobodyElse(t *testing.T) {
	got := Ask(t.Context(), time.Second, []Question{
		One("wild", "", func(context.Context) Finding { panic("oh") }),
		One("calm", "", func(context.Context) Finding { return Pass("fine") }),
	})
	if len(got) != 2 || got[0].Status != api.CheckWarn || !strings.Contains(got[0].Found, "oh") || got[1].Status != api.CheckPass {
		t.Errorf("%+v", got)
	}
}

func TestAskNothing(t *testing.T) {
	if got := Ask(t.Context(), time.Second, nil); got == nil || len(got) != 0 {
		t.Errorf("%#v is no empty list for JSON", got)
	}
}

// Ids are in people's scripts: each is there once.
func TestEveryCheckHasItsNameAndReason(t *testing.T) {
	seen := map[string]bool{}
	look := func(id, why string) {
		if seen[id] || id == "" || why == "" || strings.ContainsAny(id, " _") {
			t.Errorf("check %q: why %q", id, why)
		}
		seen[id] = true
	}
	var h Host
	for _, q := range append(h.Questions(), h.InstallationQuestions()...) {
		look(q.ID, q.Why)
	}
	for _, c := range factChecks {
		look(c.id, c.why)
	}
}
