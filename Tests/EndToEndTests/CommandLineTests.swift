import Foundation
import Testing

extension EndToEnd {
    /// Wrong words and wrong files: a status, and a line that says what is wrong.
    @Suite struct Mistakes {
        /// Expects `status` and one line on standard error; the argument parser adds its usage to it.
        private func refuses(
            _ arguments: [String], _ status: Set<Int32>, saying words: String..., sourceLocation: SourceLocation = #_sourceLocation
        ) throws {
            let output = try Vmrr.run(arguments, sourceLocation: sourceLocation)
            #expect(status.contains(output.status), "\(output)", sourceLocation: sourceLocation)
            #expect(output.stdout.isEmpty, "\(output)", sourceLocation: sourceLocation)
            let lines = output.errors.split(separator: "\n")
            #expect(lines.count == 1 || lines.first?.hasPrefix("Error: ") == true, "\(output)", sourceLocation: sourceLocation)
            #expect(!output.errors.contains("Error Domain"), "\(output)", sourceLocation: sourceLocation)
            for word in words {
                #expect(output.errors.contains(word), "\(output)", sourceLocation: sourceLocation)
            }
        }

        @Test(arguments: ["info", "events", "replay"]) func inTraces(_ command: String) throws {
            let folder = Folder.current
            try refuses([command, folder("missing.vmrr")], [64, 65], saying: "missing.vmrr", "no such file")
            try refuses([command, folder.path], [65], saying: "folder")
            try refuses([command, try folder.file("empty", [])], [65], saying: "empty")
            try refuses([command, try folder.file("text", text: "hello\n")], [65], saying: "not a vmrr trace")
            try refuses([command, try folder.file("zeros", [UInt8](repeating: 0, count: 5000))], [65], saying: "not a vmrr trace")
            try refuses([command, "/dev/null"], [65], saying: "no regular file")
            try refuses([command, "a", "b"], [64])
            // Only now: the folder's newest would be taken otherwise.
            try FileManager.default.createDirectory(atPath: folder("none"), withIntermediateDirectories: true)
            let output = try Child.run([Vmrr.binary, command], in: folder("none"), deadline: 20)
            #expect(output.status == 64 && output.errors.contains("no trace"), "\(output)")
        }

        @Test func inWords() throws {
            try refuses(["nonsense"], [64])
            try refuses(["run", "--nonsense"], [64], saying: "--nonsense")
            try refuses(["run"], [64], saying: "--guest")
            try refuses(["run", "--guest", "nobody"], [64], saying: "nobody", "vmrr guests")
            try refuses(["run", "--guest", "hello", "--kernel", "x"], [64], saying: "one guest")
            for (option, value) in [
                ("--memory", "10"), ("--memory", "64G"), ("--memory", "lots"), ("--memory", "99999999999999999999G"),
                ("--cpu", "z80"), ("--device", "floppy"), ("--rtc", "yesterday"), ("--rtc", "-1"), ("--serial", "loud"),
                ("--serial", "file:"), ("--deadline", "0s"), ("--deadline", "soon"), ("--deadline", "1e30h"),
                ("--timestamps", "maybe"),
            ] {
                try refuses(["run", "--guest", "hello", "\(option)=\(value)"], [64], saying: value)
            }
            try refuses(["record", "--guest", "hello", "--max-runs", "0"], [64], saying: "--max-runs")
            try refuses(["record", "--guest", "hello", "--timestamps", "pass"], [64], saying: "--allow-nondeterminism")
            try refuses(["guests", "--export", "nobody"], [64], saying: "nobody")
            try refuses(["guests", "--export", "hello", "-o", "/nonexistent/x"], [1, 64], saying: "/nonexistent/x")
        }

        @Test(.needsKVM) func inImages() throws {
            let folder = Folder.current
            let junk = try folder.file("junk", [UInt8](repeating: 0x90, count: 5000))
            try refuses(["run", "--kernel", folder("missing")], [64, 65], saying: "missing")
            try refuses(["run", "--kernel", folder.path], [64, 65], saying: folder.path)
            try refuses(["run", "--kernel", junk], [65], saying: "multiboot")
            try refuses(["run", "--kernel", try folder.file("elf64", Self.elf64)], [65], saying: "64")
            try refuses(["run", "--flat", junk], [64], saying: "FILE@ADDR")
            try refuses(["run", "--flat", "\(junk)@"], [64], saying: "FILE@ADDR")
            try refuses(["run", "--flat", "\(junk)@0xzz"], [64], saying: "FILE@ADDR")
            try refuses(["run", "--flat", "\(junk)@-1"], [64], saying: "FILE@ADDR")
            try refuses(["run", "--flat", "\(folder("missing"))@0x7c00"], [64, 65], saying: "missing")
            try refuses(["run", "--flat", "\(try folder.file("none", []))@0x7c00"], [64, 65], saying: "empty")
            for address in ["0xa0000", "0x9fff0", "0xffffffff", "0xffffffffffffffff"] {
                try refuses(["run", "--flat", "\(junk)@\(address)"], [64], saying: "fit")
            }
            try refuses(["run", "--guest", "hello", "--memory", "1M"], [64, 65], saying: "--memory")
            try refuses(["run", "--guest", "hello", "--append", String(repeating: "a", count: 20_000)], [64], saying: "16384")
            // A module that can't be read, or can't be passed on, isn't dropped in silence.
            try refuses(["run", "--guest", "hello", "--initrd", junk], [64], saying: "--initrd goes with --kernel")
            try refuses(["run", "--flat", "\(junk)@0x7c00", "--module", "\(junk)=x"], [64], saying: "--module goes with --kernel")
            try refuses(["run", "--kernel", junk, "--initrd", folder("missing")], [64], saying: "missing")
            try refuses(["run", "--kernel", junk, "--module", "\(folder("missing"))=x"], [64], saying: "missing")
        }

        /// An ELF file for the wrong mode, with a multiboot header.
        private static var elf64: [UInt8] {
            var image = [UInt8](repeating: 0, count: 256)
            image.replaceSubrange(0..<7, with: [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1])
            image.replaceSubrange(16..<20, with: [2, 0, 0x3E, 0])
            let magic: UInt32 = 0x1BAD_B002
            for (index, word) in [magic, 0, 0 &- magic].enumerated() {
                for byte in 0..<4 { image[128 + 4 * index + byte] = UInt8(truncatingIfNeeded: word >> UInt32(8 * byte)) }
            }
            return image
        }

        @Test func inSerialScripts() throws {
            func line(_ number: Int, _ script: String) throws {
                let path = try Folder.current.file("script.txt", text: script)
                try refuses(["run", "--guest", "echo", "--serial", "script:\(path)"], [64], saying: "line \(number)")
            }
            try line(3, "# a comment\n100ms \"fine\"\nsometime \"x\"\n")
            try line(1, "expect")
            try line(2, "\n+5ms \"no end\n")
            try line(1, "1s \"\\q\"")
            try line(1, "1s \"\\x4\"")
            try line(1, "1s \"a\" \"b\"")
            try line(1, "1e300s \"a\"")
            try refuses(["run", "--guest", "echo", "--serial", "script:/nonexistent"], [64], saying: "/nonexistent")
        }

        @Test(.needsKVM) func inRequests() throws {
            let trace = try record(.builtIn("hello"))
            try refuses(["replay", trace.path, "--to", "\(trace.exits + 1)"], [64], saying: "\(trace.exits)")
            try refuses(["replay", trace.path, "--to", "18446744073709551615"], [64])
            try refuses(["replay", trace.path, "--to", "-1"], [64])
            try refuses(["replay", trace.path, "--deadline", "x"], [64], saying: "--deadline")
            try refuses(["events", trace.path, "--kind", "party"], [64], saying: "party")
            try refuses(["events", trace.path, "--port", "com1"], [64], saying: "--port")
            try refuses(["events", trace.path, "--json", "--csv"], [64], saying: "--csv")
            try refuses(["events", trace.path, "--limit=-1"], [64], saying: "--limit")
            try refuses(["record", "--guest", "hello", "-o", "/nonexistent/x.vmrr"], [1, 64], saying: "/nonexistent/x.vmrr")
            let before = Folder.current.bytes("hello.vmrr")
            try refuses(["record", "--guest", "hello", "-o", trace.path], [64], saying: "--force")
            #expect(Folder.current.bytes("hello.vmrr") == before)
            let again = try Vmrr.run(["record", "--guest", "hello", "-o", trace.path, "--force"])
            #expect(again.status == 0 && Folder.current.bytes("hello.vmrr") != before, "\(again)")
        }
    }

    /// What the commands print.
    @Suite struct Reports {
        static func has(_ report: JSON, _ keys: String, sourceLocation: SourceLocation = #_sourceLocation) {
            let missing = Set(keys.split(separator: " ").map(String.init)).subtracting(report.keys)
            #expect(missing.isEmpty, "in \(report)", sourceLocation: sourceLocation)
        }

        @Test func guestsAndHelp() throws {
            let list = try #require(try Vmrr.run(["guests", "--json"]).json.array)
            for guest in list { Self.has(guest, "name summary parameters bytes") }
            let text = try Vmrr.run(["guests"])
            #expect(text.lines.count == list.count)
            for command in ["doctor", "guests", "run", "record", "replay", "info", "events"] {
                let help = try Vmrr.run([command, "--help"])
                #expect(help.status == 0 && help.text.contains("USAGE: vmrr \(command)"), "\(help)")
            }
            #expect(try Vmrr.run(["--version"]).lines.count == 1)
        }

        @Test(.needsKVM) func exportedGuestsRun() throws {
            let path = Folder.current("hello.bin")
            #expect(try Vmrr.run(["guests", "--export", "hello", "-o", path]).status == 0)
            let output = try Vmrr.run(["run", "--kernel", path, "--deadline", "20s"])
            #expect(output.status == 0 && output.text.contains("hello, world"), "\(output)")
        }

        @Test(.needsKVM) func theDoctorSaysWhatItFound() throws {
            Self.has(KVM.doctor, "host_cpu host_kernel capabilities tests")
            for test in try #require(KVM.doctor["tests"].array) { Self.has(test, "name outcome detail") }
            let text = try Vmrr.run(["doctor"])
            #expect(text.status == 0 && text.lines.count > 5, "\(text)")
        }

        @Test(.needsKVM) func recordInfoAndReplayAgree() throws {
            let trace = try record(.builtIn("ticker", "ticks=50"))
            Self.has(trace.report, """
                trace engine exits events interrupts raw_bytes file_bytes ended guest_status state_digest \
                memory_digest seconds
                """)
            let info = try trace.info
            Self.has(info, """
                format engine exits events interrupts raw_bytes file_bytes bytes_per_event ended guest_status guest_failed \
                state_digest memory_digest
                """)
            Self.has(info["interrupts"], "total at_exit at_window between_exits nmi")
            let replayed = try replay(trace.path).json
            Self.has(replayed, "engine exits diverged state_digest memory_digest seconds")
            for key in ["engine", "exits", "state_digest", "memory_digest"] {
                #expect(trace.report[key] == info[key] && info[key] == replayed[key], "\(key)")
            }
            for key in ["events", "interrupts", "raw_bytes", "file_bytes", "ended", "guest_status"] {
                #expect(trace.report[key] == info[key], "\(key)")
            }
            #expect(info["ended"].string == "debug-exit" && info["guest_status"].int == 0)
            #expect(info["guest_failed"].bool == false && info["interrupts"]["total"].int ?? 0 >= 50)
            let run = try Vmrr.run(["run", "--guest", "hello", "--json"])
            Self.has(run.json, "engine exits ended guest_status seconds")
            #expect(run.json["exits"].int == 92 || run.json["exits"].int ?? 0 > 80)
            #expect(try Vmrr.run(["info", trace.path]).text.contains("debug-exit"))
            let verified = try Vmrr.run(["replay", trace.path, "--verify"])
            #expect(verified.text.contains(try #require(trace.digests[0])), "\(verified)")
        }

        @Test(.needsKVM) func aGuestsFailureIsAStatus() throws {
            let image = try Folder.current.file("fail.bin", PortLoop.exit(7))
            let trace = try record(.flat(image))
            #expect(trace.status == 10, "\(trace.output)")
            #expect(try trace.info["guest_failed"].bool == true)
            #expect(try Vmrr.run(["run", "--flat", "\(image)@0x7c00"]).status == 10)
            try replaysTheSame(trace, status: 10)
        }
    }

    /// The filters and forms of `events`.
    @Suite(.needsKVM) struct Events {
        private func list(_ trace: Recorded, _ arguments: String...) throws -> [JSON] {
            let output = try Vmrr.run(["events", trace.path, "--json"] + arguments)
            #expect(output.status == 0, "\(output)")
            let lines = output.lines.map { JSON(line: $0) }
            for line in lines { #expect(line["kind"].string != nil && line["exit"].int != nil, "\(line)") }
            return lines
        }

        @Test func filters() throws {
            let trace = try record(.builtIn("ticker", "ticks=30"))
            let all = try list(trace)
            #expect(all.count == trace.report["events"].int)
            #expect(all.filter { $0["is_exit"].bool == true }.map { $0["exit"].int } == Array(1...trace.exits))
            func expect(_ arguments: String..., wanted: (JSON) -> Bool) throws {
                let output = try Vmrr.run(["events", trace.path, "--json"] + arguments)
                let listed = output.lines.map { JSON(line: $0) }
                #expect(listed == all.filter(wanted) && !listed.isEmpty, "\(arguments)")
            }
            try expect("--kind", "portWrite") { $0["kind"].string == "portWrite" }
            try expect("--kind", "halt", "--kind", "interruptAtExit") { ["halt", "interruptAtExit"].contains($0["kind"].string) }
            let ports: Set = ["portRead", "portWrite"]
            try expect("--port", "0x40") { ports.contains($0["kind"].string ?? "") && $0["address"].int == 0x40 }
            try expect("--port", "64") { ports.contains($0["kind"].string ?? "") && $0["address"].int == 0x40 }
            try expect("--address", "0x20") { $0["address"].int == 0x20 }
            try expect("--from", "20", "--to", "30") { (20...30).contains($0["exit"].int ?? 0) }
            try expect("--to", "16") { $0["exit"].int ?? 99 <= 16 }
            try expect("--from", "\(trace.exits)") { $0["exit"].int == trace.exits }
            #expect(try list(trace, "--limit", "7") == Array(all.prefix(7)))
            #expect(try list(trace, "--limit", "0").isEmpty)
            #expect(try list(trace, "--from", "\(trace.exits + 1)").isEmpty)
            #expect(try list(trace, "--from", "30", "--to", "20").isEmpty)
        }

        @Test(arguments: ["ticker", "lost-update", "strings", "nested-irq"]) func forms(_ name: String) throws {
            let trace = try record(.builtIn(name, EndToEnd.Guests.short[name] ?? ""))
            let count = try #require(trace.report["events"].int)
            #expect(try list(trace).count == count)
            #expect(try Vmrr.run(["events", trace.path]).lines.count == count)
            let table = try Vmrr.run(["events", trace.path, "--csv"]).lines
            #expect(table.count == count + 1)
            let header = try #require(table.first).split(separator: ",")
            #expect(header.prefix(2) == ["exit", "kind"])
            #expect(table.allSatisfy { $0.split(separator: ",", omittingEmptySubsequences: false).count == header.count })
        }
    }

    /// `replay` in its other forms.
    @Suite(.needsKVM) struct Replays {
        @Test(arguments: ["spin", "clocks", "hello"]) func toAnExit(_ name: String) throws {
            let trace = try record(.builtIn(name, ["spin": "ticks=60", "clocks": "rounds=100"][name] ?? ""))
            var digests: Set<[String]> = []
            let exits = Set([0, 1, 2, 255, 256, 257, trace.exits / 2, trace.exits - 1, trace.exits].filter { $0 <= trace.exits })
            for exit in exits.sorted() {
                var first: JSON?
                for _ in 0..<2 {
                    let output = try replay(trace.path, ["--to", "\(exit)"])
                    let report = output.json
                    let end = (report["started_at"].int ?? -1) + (report["exits"].int ?? -1)
                    #expect(output.status == 0 && end == exit, "\(output)")
                    let digest = report["state_digest"].string
                    #expect(digest != nil && (first == nil || digest == first?["state_digest"].string), "exit \(exit)")
                    #expect(first == nil || report["memory_digest"] == first?["memory_digest"], "exit \(exit)")
                    first = report
                }
                digests.insert([first?["state_digest"].string ?? "", first?["memory_digest"].string ?? ""])
            }
            // The clock of time: each exit is another state.
            #expect(digests.count == exits.count)
        }

        @Test(arguments: ["hello", "clocks", "user", "triple"]) func showsTheConsole(_ name: String) throws {
            let path = Folder.current("\(name).vmrr")
            let guest = Guest.builtIn(name, EndToEnd.Guests.short[name] ?? "")
            let recorded = try Vmrr.run(["record"] + guest.arguments + ["-o", path, "--deadline", "30s"])
            let replayed = try Vmrr.run(["replay", path, "--console"])
            #expect(replayed.stdout == recorded.stdout, "\(recorded)\n\(replayed)")
            #expect(name == "triple" || !recorded.stdout.isEmpty, "\(recorded)")
        }

        @Test func showsWhatWasTyped() throws {
            let path = Folder.current("echo.vmrr")
            let recorded = try Vmrr.run(["record"] + Guest.echo().arguments + ["-o", path, "--deadline", "30s"])
            #expect(recorded.text.contains("second li"), "\(recorded)")
            #expect(try Vmrr.run(["replay", path, "--console"]).stdout == recorded.stdout)
        }

        /// What comes before the guest has set its line up can be lost, as on a real one: the first character.
        @Test func standardInputIsTheSerialLine() throws {
            let path = Folder.current("echo.vmrr")
            let recorded = try Vmrr.run(
                ["record", "--guest", "echo", "-o", path, "--deadline", "30s"], input: "over the pipe\rquit\r")
            #expect(recorded.status == 0 && recorded.text.contains("the pipe"), "\(recorded)")
            #expect(try Vmrr.run(["replay", path, "--console"]).stdout == recorded.stdout)
        }

        @Test func serialOutputGoesToAFile() throws {
            let file = Folder.current("out.txt")
            let trace = try record(.builtIn("hello"), ["--serial", "file:\(file)"])
            #expect(String(decoding: Folder.current.bytes("out.txt"), as: UTF8.self).contains("hello, world"))
            try replaysTheSame(trace)
        }

        /// Console and report don't mix: standard output is JSON alone.
        @Test func consoleAndJSONAreApart() throws {
            let trace = try record(.builtIn("hello"))
            #expect(trace.report["exits"].int == trace.exits && trace.console.contains("hello, world"))
            let output = try Vmrr.run(["replay", trace.path, "--console", "--json"])
            #expect(output.json["exits"].int == trace.exits && output.errors.contains("hello, world"), "\(output)")
        }

        @Test func theNewestIsTaken() throws {
            let (old, new) = (try record(.builtIn("triple")), try record(.builtIn("hello")))
            func touch(_ trace: Recorded, _ date: Double) throws {
                let attributes = [FileAttributeKey.modificationDate: Date(timeIntervalSince1970: date)]
                try FileManager.default.setAttributes(attributes, ofItemAtPath: trace.path)
            }
            for (first, second) in [(old, new), (new, old)] {
                try touch(first, 1_700_000_000)
                try touch(second, 1_700_000_010)
                #expect(try Vmrr.run(["replay", "--json"]).json["exits"].int == second.exits)
                #expect(try Vmrr.run(["info", "--json"]).json["exits"].int == second.exits)
            }
        }

        @Test func aRecordingNamesItself() throws {
            #expect(try Vmrr.run(["record", "--guest", "hello"]).status == 0)
            let files = try FileManager.default.contentsOfDirectory(atPath: Folder.current.path)
            #expect(files.count == 1 && files[0].hasPrefix("hello-") && files[0].hasSuffix(".vmrr"), "\(files)")
            #expect(try Vmrr.run(["replay"]).status == 0)
        }

        @Test(arguments: ["0x7c00", "0x10000", "0x200000"]) func flatImages(_ address: String) throws {
            let image = try Folder.current.file("flat.bin", PortLoop.printing("flat ok\n"))
            let trace = try record(.flat(image, at: address))
            #expect(trace.status == 0 && trace.console.contains("flat ok"), "\(trace.output)")
            try replaysTheSame(trace)
        }

        /// Random bytes as a program: it may end in any way but harm vmrr, and its recording replays.
        @Test(arguments: 0..<6) func ofAWildGuest(_ number: Int) throws {
            var random = Seeded(Sizes.seed &+ UInt64(number))
            let image = try Folder.current.file("wild.bin", random.bytes(2000))
            let trace = try record(.flat(image), as: "wild", ["--deadline", "1s"], deadline: 20)
            #expect([0, 1, 10, 69].contains(trace.status), "\(trace.output)")
            let info = try trace.info
            let output = try replay(trace.path)
            #expect(output.status == (info["guest_failed"].bool == true ? 10 : 0), "\(trace.output)\n\(output)")
            #expect(output.json["exits"] == info["exits"], "\(output)")
        }
    }
}
