package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// licences are what a licence's own text says, in lower case with single spaces,
// beside its SPDX identifier.
var licences = []struct{ id, says, without string }{
	{"Apache-2.0", "apache license version 2.0, january 2004", ""},
	{"Apache-2.0", "licensed under the apache license, version 2.0", ""},
	{"BSD-2-Clause", "redistribution and use in source and binary forms, with or without modification, are permitted provided that", "neither the name"},
	{"BSD-3-Clause", "neither the name", ""},
	{"ISC", "distribute this software for any purpose with or without fee is hereby granted", ""},
	{"MIT", "permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files", ""},
	{"MPL-2.0", "mozilla public license version 2.0", ""},
}

var (
	licenceName = regexp.MustCompile(`(?i)^(licen[cs]e|copying)([-.].*)?$`)
	spaces      = regexp.MustCompile(`[\s*#/]+`)
)

// licenceOf is the SPDX expression for all licences whose texts lie in a module's
// directory; noAssertion where there is none that is known.
func licenceOf(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var found []string
	for _, e := range entries {
		if !e.Type().IsRegular() || !licenceName.MatchString(e.Name()) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		found = append(found, licencesIn(string(b))...)
	}
	if len(found) == 0 {
		return noAssertion, nil
	}
	slices.Sort(found)
	return strings.Join(slices.Compact(found), " AND "), nil
}

func licencesIn(text string) (found []string) {
	text = spaces.ReplaceAllString(strings.ToLower(text), " ")
	for _, l := range licences {
		if strings.Contains(text, l.says) && (l.without == "" || !strings.Contains(text, l.without)) {
			found = append(found, l.id)
		}
	}
	return found
}
