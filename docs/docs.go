// Package docs holds the pages that programs print.
package docs

import _ "embed"

// HelperPolicy is all that banger-helper can be asked and may touch. A test of the
// helper writes it from the table of verbs, their types and the units, and fails when
// they differ.
//
//go:embed helper-policy.txt
var HelperPolicy string
