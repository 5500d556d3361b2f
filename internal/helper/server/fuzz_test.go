package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"banger/internal/helper"
)

// Whatever bytes a verb is sent: no error of ours (5xx), and nothing is made
// unless the request is in order.
func FuzzVerbs(f *testing.F) {
	verbs := []string{"vm.reserve", "vm.release", "vm.attach", "vm.grow", "vm.fsck", "vm.launch", "vm.handover", "vm.kill", "vm.cleanup", "blob.put", "blob.gc", "bridge.ensure", "network.apply", "host.check", "vm.exec"}
	for i := range verbs {
		for _, body := range []string{``, `{}`, `null`, `[]`, `{"id":"0123456789ab"}`, `{"id":"../../../../x"}`, `{"id":"0123456789AB"}`,
			`{"id":"0123456789ab","base":"../x","overlay":"/etc/passwd"}`, `{"path":"../../etc/shadow"}`, `{"path":"/etc/shadow"}`,
			`{"id":"0123456789ab","kernel":"../x","initrd":"","vcpu":-1,"memory_mib":9999999999}`, `{"id":"0123456789ab"}{}`,
			`{"guests":[{"id":"0123456789ab","nat":true,"group":"a; drop"}]}`, `{"guests":[{"id":"../x"}],"whole":true}`, `{"guests":null}`,
			`{"guests":[{"id":"0123456789ab","address":"10.0.0.1"}]}`, `{"id":"0123456789ab\u0000"}`} {
			f.Add(i, body)
		}
	}
	f.Fuzz(func(t *testing.T, n int, body string) {
		s, _ := testServer(t)
		verb := verbs[uint(n)%uint(len(verbs))]
		if asksTheHost(verb, body) {
			return
		}
		before := tree(t, s)
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/v1/"+verb, strings.NewReader(body)))
		if w.Code >= 500 {
			t.Fatalf("%s %q: %d %s", verb, body, w.Code, w.Body)
		}
		if w.Code < 300 && verb != "network.apply" { // of nobody, it is nothing
			var r helper.VMRequest
			if err := json.Unmarshal([]byte(body), &r); err != nil || checkID(r.ID) != nil {
				t.Fatalf("%s %q was accepted: %s", verb, body, w.Body)
			}
			return
		}
		if after := tree(t, s); after != before {
			t.Fatalf("%s %q: %d, but there is now\n%s", verb, body, w.Code, after)
		}
	})
}

// asksTheHost reports whether a request is in order and would look at this
// machine, or change it: a test must not.
func asksTheHost(verb, body string) bool {
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	switch verb {
	case "host.check", "bridge.ensure":
		return body == "" || d.Decode(&helper.Empty{}) == nil
	case "network.apply":
		var r helper.NetworkRequest
		return body != "" && d.Decode(&r) == nil && r.Whole
	}
	return false
}

// FuzzGuests checks what the rules rely on: who is in the network's table is a
// VM that has a slot, once, with the address that follows from it and a group
// that is a word.
func FuzzGuests(f *testing.F) {
	for _, seed := range []string{`{}`, `{"guests":[{"id":"0123456789ab","group":"a"}]}`, `{"guests":[{"id":"ba9876543210"}],"whole":true}`,
		`{"guests":[{"id":"0123456789ab"},{"id":"0123456789ab"}]}`, `{"guests":[{"id":"0123456789ab","group":"a\n}"}]}`,
		`{"guests":[{"id":"0123456789ab","group":"-"},{"id":"x\u0000"}]}`} {
		f.Add([]byte(seed))
	}
	s, _ := testServer(f)
	s.record.Network = "172.16.0.1/16"
	slot, err := s.slots.reserve(idA)
	if err != nil {
		f.Fatal(err)
	}
	want, _ := s.record.GuestAddress(slot.Slot)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r helper.NetworkRequest
		if json.Unmarshal(raw, &r) != nil {
			return
		}
		for i := range r.Guests {
			r.Guests[i].NAT = false // whether the host forwards is not what is tested
		}
		if checkGuests(r) != nil {
			return
		}
		all, err := s.guestPorts(r.Guests)
		if err != nil {
			return
		}
		if len(all) != len(r.Guests) {
			t.Fatalf("%d of %d guests", len(all), len(r.Guests))
		}
		for id, p := range all {
			if id != idA || p.Address != want.Addr() || p.Group != "" && !isGroup(p.Group) || strings.ContainsAny(p.Group, " \n\"{};$") {
				t.Fatalf("%q: %+v", id, p)
			}
		}
	})
}

// FuzzLaunch checks what a jail and a unit are made of.
func FuzzLaunch(f *testing.F) {
	sha := strings.Repeat("a", 64)
	f.Add(`{"id":"0123456789ab","kernel":"` + sha + `","initrd":"` + sha + `","vcpu":1,"memory_mib":128}`)
	f.Add(`{"id":"0123456789ab","kernel":"` + sha + `/..","initrd":"../../x","vcpu":-1,"memory_mib":9223372036854775807}`)
	f.Fuzz(func(t *testing.T, body string) {
		var r helper.LaunchRequest
		if json.Unmarshal([]byte(body), &r) != nil || checkID(r.ID) != nil || checkLaunch(r) != nil {
			return
		}
		for _, word := range []string{r.ID, r.Kernel, r.Initrd} {
			if strings.Trim(word, "0123456789abcdef") != "" {
				t.Fatalf("%q was taken", word)
			}
		}
		if r.VCPU < 1 || r.VCPU > 32 || r.MemoryMiB < 1 || uint64(r.MemoryMiB)<<20 < uint64(r.MemoryMiB) {
			t.Fatalf("%+v was taken", r)
		}
		if r.CPUWeight < 0 || r.IOWeight < 0 || r.CPULimitMillis < 0 || r.IOLimitBytes < 0 || max(r.CPUWeight, r.IOWeight, r.CPULimitMillis) > 32000 {
			t.Fatalf("%+v was taken", r)
		}
	})
}

// tree lists everything under the server's directories.
func tree(t *testing.T, s *Server) string {
	t.Helper()
	var b strings.Builder
	root := filepath.Dir(s.places.State)
	if err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		b.WriteString(path + " " + d.Type().String() + "\n")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
