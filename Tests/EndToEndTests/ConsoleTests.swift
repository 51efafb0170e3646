import Foundation
import Testing

extension EndToEnd {
    /// A person at the guest's console, and what is left of that in the trace.
    @Suite(.needsKVM) struct Console {
        private func marks(_ path: String) throws -> [String] {
            try Vmrr.run(["info", path, "--json"]).json["marks"].array?.compactMap { $0["name"].string } ?? []
        }

        @Test func aPersonTypesMarksAndQuits() throws {
            let path = Folder.current("typed.vmrr")
            let terminal = try Terminal(["record", "--guest", "echo", "-o", path, "--deadline", "60s"])
            try terminal.expect("ends")
            terminal.type("he")
            try terminal.expect("he")
            terminal.type("\u{1}c")
            try terminal.expect("(vmrr) ")
            terminal.type("mark in the middle\r")
            try terminal.expect("marked after exit")
            terminal.type("mark\r")
            try terminal.expect(": 2")
            terminal.type("info\r")
            try terminal.expect("2 marks")
            terminal.type("checkpoint\r")
            try terminal.expect("next exit")
            terminal.type("fly\r")
            try terminal.expect("no command 'fly'")
            // What follows in one breath is the guest's.
            terminal.type("continue\rllo\r")
            try terminal.expect("olleh")
            terminal.type("\u{1}x")
            #expect(try terminal.end() == 0)

            #expect(try marks(path) == ["in the middle", "2"])
            let replayed = try Vmrr.run(["replay", path, "--console"])
            #expect(replayed.status == 0 && replayed.text.contains("hello"), "\(replayed)")
            let there = try Vmrr.run(["replay", path, "--to", "mark:in the middle", "--console"])
            #expect(there.status == 0 && there.text.hasSuffix("he"), "\(there)")
            let state = try Vmrr.run(["state", path, "--at", "mark:2", "--json"])
            let marked = try Vmrr.run(["info", path, "--json"]).json["marks"].array ?? []
            #expect(state.json["exit"].int == marked.last?["exit"].int && state.status == 0, "\(state)")
            let list = try Vmrr.run(["events", path, "--kind", "mark"])
            #expect(list.lines.map { $0.hasSuffix("mark in the middle") } == [true, false], "\(list)")
            let missing = try Vmrr.run(["replay", path, "--to", "mark:nowhere"])
            #expect(missing.status == 64 && missing.errors.contains("in the middle"), "\(missing)")
        }

        @Test func theGuestsOutputWaitsForTheMonitorToClose() throws {
            let path = Folder.current("held.vmrr")
            let terminal = try Terminal(["record", "--guest", "echo", "-o", path, "--deadline", "60s"])
            try terminal.expect("ends")
            // The guest gets these, and answers while the monitor is open.
            terminal.type("abcdef\u{1}c")
            try terminal.expect("(vmrr) ")
            terminal.type("info\r")
            try terminal.expect("KiB")
            terminal.type("\u{1}c")
            terminal.type("gh\rquit\r")
            #expect(try terminal.end() == 0)
            #expect(terminal.shown.contains("gh"))
            let console = try Vmrr.run(["replay", path, "--console"])
            #expect(console.text.contains("abcdefgh"), "\(console)")
        }

        @Test func scriptsMarkWhereAPersonWould() throws {
            let script = try Folder.current.file(
                "typed.txt", text: "expect \"ends\" mark \"ready\"\n+5ms \"hello\\r\"\nexpect \"hello\" mark \"\"\n+5ms \"quit\\r\"\n")
            let guest = Guest(name: "echo", arguments: ["--guest", "echo", "--serial", "script:\(script)"])
            let trace = try record(guest)
            #expect(try marks(trace.path) == ["ready", "2"])
            try replaysTheSame(trace)
            // Marks are no part of the guest: a copy that begins at one goes on as the recording did.
            let cut = Folder.current("cut.vmrr")
            #expect(try Vmrr.run(["snapshot", trace.path, "--at", "mark:ready", "-o", cut]).status == 0)
            let replayed = try replay(cut)
            #expect(replayed.status == trace.status && replayed.json["diverged"].isNull, "\(replayed)")
            let packed = Folder.current("packed.vmrr")
            #expect(try Vmrr.run(["pack", trace.path, "-o", packed]).status == 0)
            #expect(try marks(packed) == ["ready", "2"])
        }

        @Test func theConsoleIsExported() throws {
            let script = try Folder.current.file(
                "typed.txt", text: "expect \"ends\" mark \"ready\"\n+300ms \"hello\\r\"\n+20ms \"quit\\r\"\n")
            let guest = Guest(name: "echo", arguments: ["--guest", "echo", "--serial", "script:\(script)"])
            let trace = try record(guest)
            let text = try Vmrr.run(["export", trace.path, "--format", "text"])
            #expect(text.status == 0 && text.text == trace.console, "\(text)")

            let file = Folder.current("session.cast")
            let cast = try Vmrr.run(["export", trace.path, "--format", "asciicast", "-o", file, "--input", "--size", "90x20"])
            #expect(cast.status == 0 && cast.stdout.isEmpty, "\(cast)")
            let lines = String(decoding: Folder.current.bytes("session.cast"), as: UTF8.self).split(separator: "\n")
            let header = JSON(line: lines[0])
            #expect(header["version"].int == 2 && header["width"].int == 90 && header["height"].int == 20)
            let rows = lines.dropFirst().compactMap { JSON(line: $0).array }
            #expect(rows.count == lines.count - 1 && rows.allSatisfy { $0.count == 3 })
            let output = rows.filter { $0[1].string == "o" }.compactMap { $0[2].string }.joined()
            #expect(output == trace.console)
            #expect(rows.filter { $0[1].string == "m" }.map { $0[2].string } == ["ready"])
            #expect(rows.filter { $0[1].string == "i" }.compactMap { $0[2].string }.joined() == "hello\rquit\r")
            let times = rows.compactMap { $0[0].double }
            #expect(times == times.sorted())
            // The pause before the first line was typed is in it.
            let typed = try #require(rows.first { $0[1].string == "i" }?[0].double)
            let ready = try #require(rows.first { $0[1].string == "m" }?[0].double)
            #expect(typed - ready >= 0.29)

            #expect(try Vmrr.run(["export", trace.path, "--format", "text", "-o", file]).status == 64)
            #expect(try Vmrr.run(["export", trace.path, "--format", "text", "-o", trace.path, "--force"]).status == 64)
            #expect(try Vmrr.run(["export", trace.path, "--format", "text", "--size", "80"]).status == 64)
            #expect(try Vmrr.run(["export", trace.path, "--format", "gif"]).status == 64)
        }

        @Test func aConsoleIsPlayedAtTheSpeedOfTheRecording() throws {
            let script = try Folder.current.file("typed.txt", text: "expect \"ends\" \"x\"\n+1500ms \"quit\\r\"\n")
            let guest = Guest(name: "echo", arguments: ["--guest", "echo", "--serial", "script:\(script)"])
            let trace = try record(guest)
            func seconds(_ speed: String) throws -> Double {
                let output = try Vmrr.run(["replay", trace.path, "--console", "--speed", speed])
                #expect(output.status == 0 && output.text == trace.console, "\(output)")
                return output.seconds
            }
            #expect(try seconds("1") >= 1.5)
            let fast = try seconds("5")
            #expect(fast >= 0.3)
            #expect(try Vmrr.run(["replay", trace.path, "--speed", "1"]).status == 64)
            #expect(try Vmrr.run(["replay", trace.path, "--console", "--speed", "fast"]).status == 64)
            #expect(try Vmrr.run(["replay", trace.path, "--console", "--speed", "0"]).status == 64)
        }
    }
}
