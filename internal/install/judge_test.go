package install

import (
	"strings"
	"testing"

	"banger/internal/installed"
	"banger/internal/paths"
)

func TestConflicts(t *testing.T) {
	r := installed.Record{UIDBase: 200000, UIDCount: 65536}
	const line = "dev:100000:65536\nbanger:200000:65536\n"
	good := IDTables{SubUID: line, SubGID: line, Passwd: "root:x:0:0:::\n", Group: "root:x:0:\n"}
	if got := good.Conflicts(r); len(got) != 0 {
		t.Errorf("a reserved range: %q", got)
	}
	for want, change := range map[string]func(*IDTables){
		"overlap":             func(t *IDTables) { t.SubUID += "eve:265535:10\n" },
		"overlap those":       func(t *IDTables) { t.SubGID += "eve:199999:2\n" },
		"of user eve":         func(t *IDTables) { t.Passwd += "eve:x:200001:100:::\n" },
		"of group eve":        func(t *IDTables) { t.Group += "eve:x:265535:\n" },
		"does not reserve":    func(t *IDTables) { t.SubUID = "" },
		"subgid does not":     func(t *IDTables) { t.SubGID = "" },
		"others than VMs use": func(t *IDTables) { t.SubUID, t.SubGID = "banger:300000:65536\n", "banger:300000:65536\n" },
		"a user named":        func(t *IDTables) { t.Passwd += "banger:x:1001:100:::\n" },
	} {
		tables := good
		change(&tables)
		if got := strings.Join(tables.Conflicts(r), ";"); !strings.Contains(got, want) {
			t.Errorf("%s: %q", want, got)
		}
	}
}

func TestUnitTexts(t *testing.T) {
	texts, err := UnitTexts(installed.Record{Owner: "dev", Bridge: installed.DefaultBridge, Network: installed.DefaultNetwork})
	if err != nil {
		t.Fatal(err)
	}
	if text := texts[paths.AdminUnits+"/bangerd.service.d/10-owner.conf"]; !strings.Contains(text, "\nUser=dev\n") {
		t.Errorf("bangerd.service: %q", text)
	}
}
