package vm

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"banger/api"
)

// kernelFiles lays out what the kernel has of a VM.
func kernelFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const statsID = "0123456789ab"

func vmFiles() map[string]string {
	return map[string]string{
		"cg/cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n", "cg/memory.current": "4096\n", "cg/memory.max": "8192\n", "cg/pids.current": "4\n",
		"cg/io.stat":          "7:0 rbytes=1 wbytes=2 rios=1\n253:0 rbytes=100 wbytes=200 rios=1 wios=1 dbytes=0 dios=0\n253:1 rbytes=10 wbytes=20\n253:2 rbytes=7 wbytes=7\n../x rbytes=9\n",
		"block/253:0/dm/name": "fc-rootfs-" + statsID + "\n", "block/253:1/dm/name": "fc-work-" + statsID + "\n", "block/253:2/dm/name": "vg-home\n",
		"net/tap" + statsID + "/statistics/rx_bytes": "11\n", "net/tap" + statsID + "/statistics/tx_bytes": "22\n",
	}
}

func TestReadStats(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(map[string]string)
		want   api.Stats
	}{
		"all": {nil, api.Stats{CPUMicros: 1500, MemoryBytes: 4096, MemoryLimit: 8192, ReadBytes: 110, WriteBytes: 220, RxBytes: 22, TxBytes: 11, Tasks: 4}},
		"no limit": {func(f map[string]string) { f["cg/memory.max"] = "max\n" },
			api.Stats{CPUMicros: 1500, MemoryBytes: 4096, ReadBytes: 110, WriteBytes: 220, RxBytes: 22, TxBytes: 11, Tasks: 4}},
		"no network, no count of disks": {func(f map[string]string) {
			delete(f, "cg/io.stat")
			delete(f, "net/tap"+statsID+"/statistics/rx_bytes")
			delete(f, "net/tap"+statsID+"/statistics/tx_bytes")
		}, api.Stats{CPUMicros: 1500, MemoryBytes: 4096, MemoryLimit: 8192, Tasks: 4}},
		"what no kernel writes": {func(f map[string]string) {
			f["cg/cpu.stat"], f["cg/io.stat"] = "usage_usec", "\n253:0\n253:0 rbytes=x\n=\n"
		},
			api.Stats{MemoryBytes: 4096, MemoryLimit: 8192, RxBytes: 22, TxBytes: 11, Tasks: 4}},
	} {
		files := vmFiles()
		if tc.change != nil {
			tc.change(files)
		}
		dir := kernelFiles(t, files)
		got, err := readStats(statsID, dir+"/cg", dir+"/net/", dir+"/block/")
		if got.At.IsZero() || got.ID != statsID {
			t.Errorf("%s: %+v", name, got)
		}
		got.At, got.ID = time.Time{}, ""
		if err != nil || got != tc.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, tc.want)
		}
	}
}

func TestAnEndWhileMeasuringIsToldAsSuch(t *testing.T) {
	for _, gone := range []string{"cg", "cg/cpu.stat", "cg/memory.current", "cg/memory.max", "cg/pids.current"} {
		dir := kernelFiles(t, vmFiles())
		if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
		if _, err := readStats(statsID, dir+"/cg", dir+"/net/", dir+"/block/"); !errors.Is(err, errEnded) {
			t.Errorf("without %s: %v", gone, err)
		}
	}
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	recorded(t, m, "a", api.StateRunning) // whose cgroup is nowhere
	err := m.WatchStats(t.Context(), "a", time.Hour, func(api.Stats) error { return nil })
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != api.CodeNotRunning || !strings.Contains(p.Detail, "ended") {
		t.Errorf("%v", err)
	}
}

func TestLogArgs(t *testing.T) {
	same := []string{"--namespace=banger", "--unit=banger-vm-" + statsID + ".service"}
	for _, tc := range []struct {
		q    LogQuery
		want []string
	}{
		{LogQuery{}, []string{"--output=cat", "--no-pager", "--quiet", "--all"}},
		{LogQuery{Follow: true}, []string{"--output=cat", "--no-pager", "--quiet", "--all", "--no-tail", "--follow"}},
		{LogQuery{Follow: true, Lines: 5, Times: true, Since: time.Unix(99, 5)},
			[]string{"--output=short-iso", "--no-pager", "--quiet", "--all", "--since=@99", "--lines=5", "--follow"}},
	} {
		if got := logArgs(statsID, tc.q); !slices.Equal(got, append(slices.Clone(same), tc.want...)) {
			t.Errorf("%+v: %v", tc.q, got)
		}
	}
}

// journal puts a program in journalctl's place.
func journal(t *testing.T, script string) {
	t.Helper()
	bin := kernelFiles(t, map[string]string{"journalctl": "#!/bin/sh\n" + script})
	if err := os.Chmod(bin+"/journalctl", 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
}

func TestLogs(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	var out strings.Builder
	journal(t, `echo "console of $2"`)
	if err := m.Logs(t.Context(), statsID, LogQuery{}, &out); err != nil || out.String() != "console of --unit=banger-vm-"+statsID+".service\n" {
		t.Errorf("%q, %v", &out, err)
	}
	journal(t, `echo half; echo "no rights" >&2; head -c 100000 /dev/zero >&2; exit 1`)
	err := m.Logs(t.Context(), statsID, LogQuery{}, &out)
	if p, ok := errors.AsType[*api.Problem](err); !ok || !strings.Contains(p.Detail, "no rights") || len(p.Detail) > 2*logWords {
		t.Errorf("%v", err)
	}
	// A reader that leaves ends the journalctl, however much it had to say.
	journal(t, `exec yes`)
	if err := m.Logs(t.Context(), statsID, LogQuery{Follow: true}, &leaving{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
	for range logReaders {
		m.logs <- struct{}{}
	}
	err = m.Logs(t.Context(), statsID, LogQuery{}, &out)
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != api.CodeUnavailable {
		t.Errorf("one too many: %v", err)
	}
}

func TestFollowedLogsEndWithTheirVM(t *testing.T) {
	m := open(t, t.TempDir(), &fakeHelper{}, &fakeKernels{})
	v, err := m.Create(t.Context(), api.VMSpec{Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	journal(t, `echo last words; exec sleep 60`)
	ended := make(chan error, 1)
	var out strings.Builder
	go func() { ended <- m.Logs(t.Context(), v.ID, LogQuery{Follow: true}, &out) }()
	if err := m.Delete(t.Context(), v.ID, false, &stages{}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil || out.String() != "last words\n" {
			t.Errorf("%q, %v", &out, err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("they are followed for ever")
	}
	if len(m.logs) != 0 {
		t.Error("the reader's place is not free")
	}
}

// leaving takes a little and goes.
type leaving struct{ n int }

func (l *leaving) Write(p []byte) (int, error) {
	if l.n++; l.n > 2 {
		return 0, os.ErrClosed
	}
	return len(p), nil
}
