package install

import (
	"slices"

	"banger/internal/installed"
	"banger/internal/paths"
	"banger/internal/version"
)

// UnitTexts are the unit files of an installation by their paths, and the settings
// beside them, as they were written; for who compares them with what is there.
func UnitTexts(r installed.Record) (map[string]string, error) {
	files, err := staticUnits(paths.Here, version.Version)
	if err != nil {
		return nil, err
	}
	owners, err := ownersUnits(r, version.Version)
	if err != nil {
		return nil, err
	}
	texts := map[string]string{}
	for _, f := range slices.Concat(files, owners, settings()) {
		texts[f.path] = f.text
	}
	return texts, nil
}

// IDTables are the texts of the files that say which ids are whose.
type IDTables struct{ SubUID, SubGID, Passwd, Group string }

// Conflicts says what keeps the VMs' ids from being theirs alone; nothing if
// they are.
func (t IDTables) Conflicts(r installed.Record) []string {
	choice, err := idTables{subuid: t.SubUID, subgid: t.SubGID, passwd: t.Passwd, group: t.Group}.choose()
	var found []string
	switch {
	case err != nil:
		found = append(found, err.Error())
	case choice.addUIDs:
		found = append(found, subUIDFile+" does not reserve them")
	case choice.addGIDs:
		found = append(found, subGIDFile+" does not reserve them")
	case choice.start != r.UIDBase || r.UIDCount != rangeCount:
		found = append(found, subUIDFile+" reserves others than VMs use")
	}
	return found
}
