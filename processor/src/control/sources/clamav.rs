//! ClamAV: the lines of clamd's log that say `FOUND`.
//!
//! `Sat Nov 28 09:21:54 2026 -> /srv/web-1/x.com: Eicar-Test(44d88612fea8a8f36de82e1278abb02f:68) FOUND`; the time stands there with LogTime,
//! the hash with ExtendedDetectionInfo. The fields are called as VirusEvent calls them. Who names files may put line ends into names, and so
//! lines into the log.

use serde_json::json;

use super::Reported;

/// What a line of the log is.
pub(super) fn read(line: &str) -> Reported {
    let Some(found) = line.strip_suffix(" FOUND") else {
        return Reported::Other;
    };
    let found = found.split_once(" -> ").map_or(
        found,
        |(time, rest)| if time.contains('/') { found } else { rest },
    );
    // The virus has no space in its name, the file may have whatever it wants.
    let Some((file, virus)) = found.rsplit_once(": ") else {
        return Reported::Malformed;
    };
    let virus = virus.split_once('(').map_or(virus, |(virus, _)| virus);
    if file.is_empty() || virus.is_empty() || virus.contains(' ') {
        return Reported::Malformed;
    }
    Reported::Report(json!({"CLAM_VIRUSEVENT_FILENAME": file, "CLAM_VIRUSEVENT_VIRUSNAME": virus}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Option<(String, String)> {
        match read(line) {
            Reported::Report(report) => {
                let field = |name: &str| report[name].as_str().unwrap().to_owned();
                Some((
                    field("CLAM_VIRUSEVENT_FILENAME"),
                    field("CLAM_VIRUSEVENT_VIRUSNAME"),
                ))
            }
            _ => None,
        }
    }

    #[test]
    fn the_file_and_the_virus_are_told_apart_whatever_the_file_is_called() {
        let is = |line: &str, file: &str, virus: &str| {
            assert_eq!(found(line), Some((file.to_owned(), virus.to_owned())), "{line}");
        };
        let time = "Sat Nov 28 09:21:54 2026 -> ";
        is(
            &format!("{time}/a/eicar.com: Eicar-Test(44d8:68) FOUND"),
            "/a/eicar.com",
            "Eicar-Test",
        );
        is("/a/eicar.com: Eicar-Test FOUND", "/a/eicar.com", "Eicar-Test");
        is(
            &format!("{time}instream(local): Eicar.UNOFFICIAL(44d8:68) FOUND"),
            "instream(local)",
            "Eicar.UNOFFICIAL",
        );
        is(
            &format!("{time}/a/x: evil(1) FOUND -> y: Win.Test(1:2) FOUND"),
            "/a/x: evil(1) FOUND -> y",
            "Win.Test",
        );
        is("/a/x -> y: Win.Test FOUND", "/a/x -> y", "Win.Test");
        for other in ["Sat Nov 28 09:21:54 2026 -> Loaded 2 signatures.", "/a/b: OK", ""] {
            assert!(matches!(read(other), Reported::Other), "{other}");
        }
        for bad in [" FOUND", "x FOUND", ": FOUND", "/a: b c FOUND", "/a: (1) FOUND"] {
            assert!(matches!(read(bad), Reported::Malformed), "{bad}");
        }
    }
}
