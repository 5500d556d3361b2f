//go:build e2e && hostile

package hostile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"banger/internal/jsonhttp"
	"banger/internal/paths"
)

// body is a request as it is on the wire; what is not in it is not sent.
type body map[string]any

func (b body) with(key string, value any) body {
	c := maps.Clone(b)
	c[key] = value
	return c
}

// attacker calls the helper's verbs. Each request has an id of its own, by which
// the test finds it in the log.
type attacker struct {
	client *http.Client
	sent   atomic.Int64
}

// TestOwnerProcess is the owner's process, which TestHostileOwner starts.
func TestOwnerProcess(t *testing.T) {
	if os.Getenv(ownerRole) == "" {
		t.Skip("a part of TestHostileOwner")
	}
	a := &attacker{client: unixClient(paths.HelperSocket)}
	t.Run("ids", a.ids)
	t.Run("paths", a.paths)
	t.Run("values", a.values)
	t.Run("HTTP", a.http)
	t.Run("others", a.others)
	t.Run("swaps", a.swaps)
	t.Run("fuzz", a.fuzz)
	for _, id := range []string{ownerA, ownerB, ownerUnknown, ownerForeign, ownerDummy} {
		a.call(t, "vm.release", body{"id": id}) // the last two are refused
	}
	t.Run("flood", a.flood)
	t.Run("slow", a.slow)
	fmt.Println(ownerSent + strconv.FormatInt(a.sent.Load(), 10))
}

func (a *attacker) call(t *testing.T, verb string, in any) (int, []byte) {
	t.Helper()
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return a.raw(t, verb, raw)
}

func (a *attacker) raw(t *testing.T, verb string, raw []byte) (int, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://helper/v1/"+verb, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return a.do(t, r)
}

// do returns status 0 for a request that got no answer.
func (a *attacker) do(t *testing.T, r *http.Request) (int, []byte) {
	t.Helper()
	r.Header.Set(jsonhttp.OperationHeader, ownerPrefix+strconv.FormatInt(a.sent.Add(1), 10))
	resp, err := a.client.Do(r)
	if err != nil {
		t.Errorf("%s: %v", r.URL.Path, err)
		return 0, nil
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("%s: %v", r.URL.Path, err)
	}
	return resp.StatusCode, answer
}

// refused calls a verb that must say no, and that it is the caller's fault.
func (a *attacker) refused(t *testing.T, verb string, in any) {
	t.Helper()
	if status, answer := a.call(t, verb, in); status < 400 || status >= 500 {
		t.Errorf("%s %.200s: %d %.300s", verb, shown(in), status, answer)
	}
}

func (a *attacker) done(t *testing.T, verb string, in any) []byte {
	t.Helper()
	status, answer := a.call(t, verb, in)
	if status != http.StatusOK {
		t.Errorf("%s %.200s: %d %.300s", verb, shown(in), status, answer)
	}
	return answer
}

func shown(in any) string {
	raw, err := json.Marshal(in)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

const sha = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// requests are in order but for what a test changes in them. Each names a VM.
var requests = map[string]body{
	"vm.reserve":  {"id": ownerA},
	"vm.release":  {"id": ownerA},
	"vm.attach":   {"id": ownerA, "base": ownerDir + "/good", "overlay": ownerDir + "/over", "work": ownerDir + "/work"},
	"vm.grow":     {"id": ownerA},
	"vm.fsck":     {"id": ownerA, "disk": "root"},
	"vm.launch":   {"id": ownerA, "kernel": sha, "initrd": sha, "vcpu": 1, "memory_mib": 128},
	"vm.handover": {"id": ownerA},
	"vm.kill":     {"id": ownerA},
	"vm.cleanup":  {"id": ownerA},
}

var badIDs = []any{
	"", ".", "..", "/", "../" + ownerA, ownerA + "/..", "../../../etc", "/etc/passwd", "zz", "vmx", "a0000000000", "A00000000001", ownerA + "0", ownerA + "\x00",
	ownerA + "\n", " " + ownerA, "a0000000000.", "%2e%2e%2f", "a00000000٠١٢", "ａ００００００００００１", strings.Repeat("a", 100_000), "\u202e" + ownerA,
	1, -1, 1e300, 0.5, nil, true, []any{}, []any{ownerA}, body{}, body{"id": ownerA},
}

func (a *attacker) ids(t *testing.T) {
	for verb, good := range requests {
		for _, id := range badIDs {
			a.refused(t, verb, good.with("id", id))
		}
		a.refused(t, verb, body{})
		for field, value := range map[string]any{"pid": 1, "device": "/dev/vda", "unit": "banger-vmx.service", "uid": 0, "../": "", "": "", "_": strings.Repeat("x", 10_000)} {
			a.refused(t, verb, good.with(field, value))
		}
	}
	for _, id := range badIDs {
		a.refused(t, "network.apply", body{"guests": []any{body{"id": id}}})
	}
	for _, verb := range []string{"vm.attach", "vm.grow", "vm.fsck", "vm.launch", "vm.handover"} { // of a VM that never was
		a.refused(t, verb, requests[verb].with("id", ownerUnknown))
	}
	for _, verb := range []string{"vm.kill", "vm.cleanup", "vm.release"} { // there is nothing to do
		a.done(t, verb, requests[verb].with("id", ownerUnknown))
	}
}

// badPaths name no regular file of the owner, of one name, below his directory.
var badPaths = []any{
	"", ".", "..", "/", "./", "../", "//", ownerDir, ownerDir + "/", ownerDir + "/none", ownerDir + "/good/", ownerDir + "//good", ownerDir + "/./good",
	ownerDir + "/dir/../good", "../banger/" + ownerDir + "/good", paths.StateDir + "/" + ownerDir + "/good", "/etc/passwd", "/etc/shadow", "etc/passwd",
	ownerDir + "/../../../../etc/passwd", "../../../etc/passwd", "/proc/self/fd/0", "/proc/1/root/etc/passwd", "/dev/vda", "/dev/null", "/dev/loop0", "/dev/mapper/fc-rootfs-zz",
	"../banger-helper/slots.json", paths.HelperDir + "/slots.json", paths.InstallFile,
	ownerDir + "/link", ownerDir + "/dirlink/passwd", ownerDir + "/foreign/leaf", ownerDir + "/magic/etc/passwd", ownerDir + "/other", ownerDir + "/self", ownerDir + "/self/x",
	ownerDir + "/up/" + ownerDir + "/good", ownerDir + "/fifo", ownerDir + "/dir", ownerDir + "/sock", ownerDir + "/dev", ownerDir + "/disk", ownerDir + "/root", ownerDir + "/hard",
	ownerDir + "/twice", ownerDir + "/again", ownerDir + "/empty", ownerDir + "/good\x00", ownerDir + "\x00/../good", ownerDir + "/\n", ownerDir + "/gооd", "\u202e", "~", "$HOME", "*", ";id",
	strings.Repeat("a", 255), strings.Repeat("a", 256), strings.Repeat("a/", 2000) + "a", strings.Repeat("../", 2000), strings.Repeat("x", 100_000),
	1, -1, true, []any{ownerDir + "/good"}, body{"path": "x"},
}

func (a *attacker) paths(t *testing.T) {
	a.done(t, "vm.reserve", body{"id": ownerA})
	for _, path := range append(badPaths, nil) {
		a.refused(t, "blob.put", body{"path": path})
		for _, field := range []string{"base", "overlay", "work"} {
			if path == "" && field == "work" || path == nil && field == "work" {
				continue // none
			}
			a.refused(t, "vm.attach", requests["vm.attach"].with(field, path))
		}
	}
	for _, field := range []string{"base", "overlay", "work"} {
		a.refused(t, "vm.attach", requests["vm.attach"].with(field, ownerDir+"/odd"))
	}
	a.refused(t, "vm.attach", requests["vm.attach"].with("overlay", ownerDir+"/good")) // the base, too
	a.done(t, "vm.attach", requests["vm.attach"])
	a.done(t, "vm.attach", requests["vm.attach"])
	a.refused(t, "vm.attach", requests["vm.attach"].with("base", ownerDir+"/work").with("work", ownerDir+"/good"))
	a.leases(t)
	a.refused(t, "vm.launch", requests["vm.launch"])            // of blobs that are not there
	a.refused(t, "vm.handover", requests["vm.kill"])            // it was never launched
	a.done(t, "vm.grow", requests["vm.grow"])                   // nothing to do
	a.refused(t, "vm.fsck", body{"id": ownerA, "disk": "work"}) // no filesystem
	a.done(t, "vm.cleanup", requests["vm.cleanup"])
}

// leases would have whoever opens the file wait, for as long as we like.
func (a *attacker) leases(t *testing.T) {
	const name = ownerDir + "/leased"
	path := filepath.Join(paths.StateDir, name)
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close(); _ = os.Remove(path) }()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	for _, field := range []string{"overlay", "work"} { // the base is only read, which breaks no such lease
		a.refused(t, "vm.attach", requests["vm.attach"].with(field, name))
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("leased files kept the helper for %s", took)
	}
}

func (a *attacker) values(t *testing.T) {
	launch := requests["vm.launch"]
	numbers := []any{-1, 0, 1 << 31, int64(1) << 62, 1e30, -1e30, 0.5, "1", true, nil, []any{1}, json.Number("99999999999999999999999"), json.Number("-0.0001")}
	for _, n := range append(numbers, 33) {
		a.refused(t, "vm.launch", launch.with("vcpu", n))
	}
	for _, n := range append(numbers, 1, 31, 1<<20+1) {
		a.refused(t, "vm.launch", launch.with("memory_mib", n))
	}
	for _, field := range []string{"cpu_weight", "io_weight", "cpu_limit_millis", "io_limit_bytes"} {
		for _, n := range append(numbers, 9, int64(1)<<41) {
			a.refused(t, "vm.launch", launch.with(field, n))
		}
	}
	a.refused(t, "vm.kill", body{"id": ownerA, "no_wait": "yes"})
	hashes := []any{"", "x", strings.ToUpper(sha), sha[1:], sha + "a", "../" + sha[3:], sha[:60] + "/../", sha + "\x00", strings.Repeat("a", 1<<17), 1, nil, []any{sha}}
	for _, h := range hashes {
		a.refused(t, "vm.launch", launch.with("kernel", h))
		a.refused(t, "vm.launch", launch.with("initrd", h))
		a.refused(t, "blob.gc", body{"keep": []any{h}})
	}
	for _, keep := range []any{nil, sha, 1, body{}, []any{[]any{}}} {
		a.refused(t, "blob.gc", body{"keep": keep})
	}
	for _, disk := range []any{"", "swap", "ROOT", "root\x00", "../root", "rootfs", "/dev/vda", 1, nil, []any{"root"}} {
		a.refused(t, "vm.fsck", body{"id": ownerA, "disk": disk})
	}
	a.refused(t, "vm.fsck", body{"id": ownerA, "disk": "root", "repair": "yes"})
	for _, group := range []any{"-", "a-", "A", "a b", "a\n}", `a"; drop`, "$x", "é", strings.Repeat("a", 64), "\x00", 1, []any{}} {
		a.refused(t, "network.apply", body{"guests": []any{body{"id": ownerA, "group": group}}})
	}
	twice, many := []any{body{"id": ownerA}, body{"id": ownerA}}, make([]any, 4097)
	for i := range many {
		many[i] = body{"id": fmt.Sprintf("b%011x", i)}
	}
	for _, guests := range []any{twice, many, many[:10], "all", 1, body{}} {
		a.refused(t, "network.apply", body{"guests": guests})
		a.refused(t, "network.apply", body{"guests": guests, "whole": true})
	}
	a.refused(t, "network.apply", body{"guests": []any{body{"id": ownerA, "address": "172.16.0.1", "mac": "x"}}})
	a.refused(t, "bridge.ensure", body{"bridge": "eth0"})
	a.refused(t, "host.check", body{"path": "/etc/shadow"})
	a.done(t, "network.apply", body{}) // of nobody
	for range 4 {
		a.done(t, "bridge.ensure", body{})
	}
}

func (a *attacker) http(t *testing.T) {
	for _, raw := range []string{
		"null", "[]", `""`, "0", "{", `{"id":`, `{"id":"` + ownerUnknown + `"}{}`, `{"id":"` + ownerUnknown + `"} x`, "{'id':1}", "\xff\xfe", "\x00", strings.Repeat("[", 100_000),
		`{"id":` + strings.Repeat(`{"id":`, 20_000), `{"` + strings.Repeat("x", 100_000) + `":1}`, `{"id":"` + strings.Repeat(`\u0000`, 20_000) + `"}`,
	} {
		if status, answer := a.raw(t, "vm.cleanup", []byte(raw)); status/100 != 4 {
			t.Errorf("%.40q: %d %.200s", raw, status, answer)
		}
	}
	for _, c := range []struct{ method, path string }{
		{"GET", "/v1/vm.kill"}, {"PUT", "/v1/vm.kill"}, {"DELETE", "/v1/vm.kill"}, {"TRACE", "/v1/vm.kill"}, {"POST", "/"}, {"POST", "/v1/"}, {"POST", "/v1/vm.exec"},
		{"POST", "/v1/VM.KILL"}, {"POST", "/v1/vm.kill/"}, {"POST", "/v1/../v1/vm.kill"}, {"POST", "/v1/vm.kill%00"}, {"POST", "//v1/vm.kill"}, {"PRI", "*"}, {"\x00", "/"}, {"POST", "/debug/pprof/"},
	} {
		// By hand: a client would make such a request better than it is.
		text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", c.method, c.path)
		if status := plainStatus(t, paths.HelperSocket, text); status != 0 && (status < 300 || status >= 500) && status != 505 {
			t.Errorf("%s %s: %d", c.method, c.path, status)
		}
	}
}

// others are things that are not the attacker's: a VM that runs, and what is
// called like something of ours but is not.
func (a *attacker) others(t *testing.T) {
	vm := os.Getenv(ownerVM)
	for _, verb := range []string{"vm.cleanup", "vm.release", "vm.attach", "vm.launch", "vm.fsck"} {
		a.refused(t, verb, requests[verb].with("id", vm))
	}
	a.done(t, "vm.reserve", body{"id": vm})
	a.done(t, "vm.handover", body{"id": vm})
	for _, id := range []string{ownerForeign, ownerDummy} {
		a.done(t, "vm.reserve", body{"id": id})
		a.done(t, "vm.kill", body{"id": id})
		for _, verb := range []string{"vm.cleanup", "vm.release"} {
			if status, answer := a.call(t, verb, body{"id": id}); status < 400 || !bytes.Contains(answer, []byte("stays")) && !bytes.Contains(answer, []byte("not removed")) {
				t.Errorf("%s of %s: %d %s", verb, id, status, answer)
			}
		}
	}
	for _, verb := range []string{"vm.attach", "vm.grow", "vm.fsck", "vm.launch", "vm.handover"} {
		a.refused(t, verb, requests[verb].with("id", ownerForeign))
	}
}
