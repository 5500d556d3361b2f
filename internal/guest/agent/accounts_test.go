package agent

import (
	"reflect"
	"testing"
)

func etc(t testing.TB, passwd, group string) accountFiles {
	t.Helper()
	dir := t.TempDir()
	if passwd != "" {
		create(t, dir+"/passwd", passwd, 0o644)
	}
	if group != "" {
		create(t, dir+"/group", group, 0o644)
	}
	return accountFiles(dir)
}

func TestFindAccount(t *testing.T) {
	const passwd = "# comment\nshort:x:1\nroot:x:0:0:root:/root:/bin/ash\n" +
		"dev:x:1000:1001:,,,:/home/dev:/usr/bin/fish\nbare:x:7:7:::\nbad:x:no:7::/:/bin/sh\nhuge:x:4294967296:7::/:/bin/sh\n"
	const group = "dev:x:1001:\nsudo:x:27:other,dev\ndocker:x:998:dev\nbad:x:no:dev\nroot:x:0:root\n"
	for name, tt := range map[string]struct {
		passwd, user string
		want         account
		fails        bool
	}{
		"root":                  {passwd, "root", account{name: "root", home: "/root", shell: "/bin/ash"}, false},
		"user with groups":      {passwd, "dev", account{"dev", 1000, 1001, []uint32{27, 998}, "/home/dev", "/usr/bin/fish"}, false},
		"no home, no shell":     {passwd, "bare", account{name: "bare", uid: 7, gid: 7, home: "/", shell: "/bin/sh"}, false},
		"no such user":          {passwd, "nobody", account{}, true},
		"uid is no number":      {passwd, "bad", account{}, true},
		"uid is too large":      {passwd, "huge", account{}, true},
		"comment is no user":    {passwd, "# comment", account{}, true},
		"root without passwd":   {"", "root", account{name: "root", home: "/root", shell: "/bin/sh"}, false},
		"user without passwd":   {"", "dev", account{}, true},
		"empty name is no user": {passwd, "", account{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := etc(t, tt.passwd, group).find(tt.user)
			if (err != nil) != tt.fails || !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}
