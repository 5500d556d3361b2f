package installed

import (
	"strings"
	"testing"
)

func valid() Record {
	return Record{Owner: "dev", UID: 1000, GID: 1000, UIDBase: 200000, UIDCount: 65536,
		Firecracker: "/x/firecracker", Jailer: "/x/jailer", Version: "v1 \"quoted\""}
}

func TestRoundTrip(t *testing.T) {
	text, err := valid().Text()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(text)
	if err != nil || got != valid() {
		t.Fatalf("Parse(Text()) = %+v, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	good, err := valid().Text()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"unknown key":    good + "colour = 1\n",
		"repeated key":   good + "uid = 1000\n",
		"no value":       good + "gid\n",
		"not a string":   strings.Replace(good, `"dev"`, "dev", 1),
		"root owner":     strings.Replace(good, "uid = 1000", "uid = 0", 1),
		"owner in range": strings.Replace(good, "uid = 1000", "uid = 200001", 1),
		"low range":      strings.Replace(good, "uid_base = 200000", "uid_base = 100", 1),
		"relative vmm":   strings.Replace(good, "/x/jailer", "jailer", 1),
		"empty":          "",
	} {
		if r, err := Parse(text); err == nil {
			t.Errorf("%s: accepted as %+v", name, r)
		}
	}
}
