package install

import (
	"slices"
	"strings"
	"testing"
)

func TestChooseRange(t *testing.T) {
	const dev = "dev:100000:65536\n"
	const ours = "banger:300000:65536\n"
	for name, tt := range map[string]struct {
		tables idTables
		want   idChoice
		err    string
	}{
		"nothing there":       {idTables{}, idChoice{200000, true, true}, ""},
		"below the floor":     {idTables{subuid: dev, subgid: dev}, idChoice{200000, true, true}, ""},
		"in the way":          {idTables{subuid: dev + "ann:165536:65536\n"}, idChoice{262144, true, true}, ""},
		"in the way, gid":     {idTables{subgid: "ann:265535:1\n"}, idChoice{327680, true, true}, ""},
		"just behind":         {idTables{subgid: "ann:265536:1\n"}, idChoice{200000, true, true}, ""},
		"several":             {idTables{subuid: "a:262144:65536\nb:200000:10\n", subgid: "c:327680:65536\n"}, idChoice{393216, true, true}, ""},
		"below containers":    {idTables{subuid: "a:100000:358752\n"}, idChoice{458752, true, true}, ""},
		"not into containers": {idTables{subuid: "a:100000:358753\n"}, idChoice{0x70000000, true, true}, ""},
		"not into foreign":    {idTables{subuid: "a:100000:358753\nb:1879048192:268304384\n"}, idChoice{}, "no run of"},
		"ours in containers":  {idTables{subuid: "banger:600000:65536\n"}, idChoice{600000, false, true}, ""},
		"a directory's user":  {idTables{passwd: "root:x:0:0::/:/bin/sh\n\nann@corp:*:200001:200513:Ann:/home/ann:/bin/sh\n"}, idChoice{262144, true, true}, ""},
		"a user":              {idTables{passwd: "ad:x:200500:200500::/:/bin/sh\n"}, idChoice{262144, true, true}, ""},
		"a group":             {idTables{group: "ad:x:200500:\n"}, idChoice{262144, true, true}, ""},
		"a huge user":         {idTables{passwd: "nfsnobody:x:4294967294:4294967294::/:/bin/sh\n"}, idChoice{200000, true, true}, ""},
		"broken lines":        {idTables{subuid: "\n:\nx\na:b:c\na:1\n#c:200000:65536\na:-1:5\na:200000:0\n  \n"}, idChoice{200000, true, true}, ""},
		"all taken":           {idTables{subuid: "a:0:4294967295\n"}, idChoice{}, "no run of"},
		"ours":                {idTables{subuid: dev + ours, subgid: ours}, idChoice{300000, false, false}, ""},
		"ours, no newline":    {idTables{subuid: dev + "banger:300000:65536", subgid: ours}, idChoice{300000, false, false}, ""},
		"only uids":           {idTables{subuid: ours, subgid: dev}, idChoice{300000, false, true}, ""},
		"only gids":           {idTables{subgid: ours}, idChoice{300000, true, false}, ""},
		"only uids, gid used": {idTables{subuid: ours, subgid: "ann:300000:10\n"}, idChoice{}, "overlap those of ann"},
		"disagreeing":         {idTables{subuid: ours, subgid: "banger:400000:65536\n"}, idChoice{}, "from 300000 and /etc/subgid those from 400000"},
		"twice":               {idTables{subuid: ours + ours, subgid: ours}, idChoice{}, "line 2: a second range"},
		"too few":             {idTables{subuid: "banger:300000:1000\n"}, idChoice{}, "is not a range of 65536"},
		"too low":             {idTables{subuid: "banger:1000:65536\n"}, idChoice{}, "is not a range"},
		"too high":            {idTables{subuid: "banger:2147483000:65536\n"}, idChoice{}, "is not a range"},
		"ours broken":         {idTables{subgid: "banger:x:65536\n"}, idChoice{}, "/etc/subgid line 1"},
		"ours overlapped":     {idTables{subuid: ours + "ann:365535:10\n", subgid: ours}, idChoice{}, "overlap those of ann"},
		"ours holds a user":   {idTables{subuid: ours, subgid: ours, passwd: "ad:x:300001:1::/:/bin/sh\n"}, idChoice{}, "overlap those of user ad"},
		"user banger":         {idTables{passwd: "banger:x:1000:1000::/:/bin/sh\n"}, idChoice{}, "user named"},
	} {
		got, err := tt.tables.choose()
		switch {
		case tt.err == "" && (err != nil || got != tt.want):
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, tt.want)
		case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%s: got %+v, %v, want error %q", name, got, err, tt.err)
		}
	}
}

func FuzzChooseRange(f *testing.F) {
	f.Add("dev:100000:65536\n", "banger:200000:65536\n", "root:x:0:0:::\n")
	f.Add("a:9223372036854775807:9223372036854775807\n", "", "")
	f.Fuzz(func(t *testing.T, subuid, subgid, passwd string) {
		c, err := idTables{subuid: subuid, subgid: subgid, passwd: passwd}.choose()
		if err != nil {
			return
		}
		got := idRange{start: int64(c.start), count: rangeCount}
		if got.start < rangeCount || got.end() > rangeLimit {
			t.Fatalf("chose %d", c.start)
		}
		for _, u := range accounts(passwd, "user") {
			if u.overlaps(got) {
				t.Fatalf("chose %d, which holds %s", c.start, u.who)
			}
		}
		added := ""
		for path, line := range c.lines() {
			if path == subUIDFile {
				added = "\n" + line + "\n"
			}
		}
		if own, others, err := subIDs(subuid+added, subUIDFile); err != nil || own == nil || *own != (idRange{got.start, got.count, rangeName}) {
			t.Fatalf("reading back gives %v, %v, %v", own, others, err)
		}
	})
}

func TestRangeAvoidsAccountsInNoFile(t *testing.T) {
	f := newHost(t)
	f.accounts = map[string]string{"group": "staff@corp:*:200513:\n"}
	f.fail = func(argv []string) error {
		if slices.Equal(argv, []string{"getent", "passwd"}) {
			return &commandError{argv: argv, code: 3} // a directory that does not list
		}
		return nil
	}
	f.mustInstall()
	if got := f.read("/etc/subuid"); !strings.Contains(got, "banger:262144:65536\n") {
		t.Errorf("subuid = %q", got)
	}
}
