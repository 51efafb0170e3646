import Foundation
import Testing

/// The commands that look into a trace: what they print, and what they say to wrong arguments.
@Suite(.needsKVM, .ownFolder, .keptOnFailure) struct FindCommandTests {
    /// A guest that fails in the same way each time: the golden trace of the race.
    private static let trace = Vmrr.root.appendingPathComponent("traces/v1-lost-update.vmrr").path
    private static let invariant = "u32[shared] < u32[main_count] + u32[ticks]"

    private func json(_ arguments: [String], sourceLocation: SourceLocation = #_sourceLocation) throws -> JSON {
        let output = try Vmrr.run(arguments + ["--json"], deadline: 120, sourceLocation: sourceLocation)
        try #require(output.status == 0, "\(output)", sourceLocation: sourceLocation)
        return output.json
    }

    @Test func bisectNamesTheInterruptThatBrokeTheInvariant() throws {
        // A tick between the load and the store of the main loop's increment is lost.
        let lost = try Vmrr.run(["events", Self.trace, "--where", "exit.rip == iterate + 0x16", "--json"]).lines
        guard lost.count == 1, KVM.canStopBetweenExits else { return }
        let tick = JSON(line: lost[0])
        let report = try json(["bisect", Self.trace, "--when", Self.invariant])
        #expect(report["interrupt"]["anchor"]["memory"] == tick["anchor"]["memory"])
        #expect(report["interrupt"]["exit"] == tick["exit"])
        // The interrupt's own exit is its EOI; the update is lost right after it.
        #expect(report["last_good"].int == tick["exit"].int.map { $0 + 1 })
        #expect(report["instruction"]["symbol"].string?.hasPrefix("iterate") == true)
        #expect((report["replays"].int ?? .max) <= (report["replay_bound"].int ?? 0))
    }

    @Test func stateShowsWhatWasAskedFor() throws {
        let report = try json([
            "state", Self.trace, "--at", "100", "--mem", "shared", "--mem", "phys:0x100000:16", "--pages", "shared",
            "--backtrace",
        ])
        #expect(report["exit"].int == 100)
        #expect(report["registers"]["rip"].string?.count == 18)
        #expect(report["memory"].array?.count == 2)
        #expect(report["memory"].array?[1]["bytes"].string?.hasPrefix("02b0ad1b") == true)
        #expect(report["pages"].array?[0]["entries"].array?.map { $0["level"].string } == ["PML4E", "PDPTE", "PDE"])
        #expect(report["pages"].array?[0]["physical"] == report["pages"].array?[0]["address"])
        #expect(report["backtrace"].array?.isEmpty == false)
        #expect(report["code"].array?.count { $0["is_next"].bool == true } == 1)
        // A trace from before recordings held what their devices were given.
        #expect(report["devices"].isNull)
        let recent = try record(.builtIn("ticker", "ticks=20"))
        #expect(try json(["state", recent.path, "--at", "50"])["devices"]["interrupts"].keys.contains("pic"))
        let text = try Vmrr.run(["state", Self.trace, "--at", "100"])
        #expect(text.status == 0 && text.text.contains("64-bit mode") && !text.text.contains("\u{1B}"), "\(text)")
    }

    @Test func looksDontChangeWhatTheyLookAt() throws {
        let before = try json(["state", Self.trace, "--at", "200"])
        let after = try json([
            "state", Self.trace, "--at", "200", "--pages", "0xffff800000000000", "--backtrace", "--mem", "0:64",
        ])
        #expect(before["registers"] == after["registers"])
        let same = try json(["diff", Self.trace + "@200", Self.trace + "@200"])
        #expect(same["equal"].bool == true)
    }

    @Test func writesAndDiffAgree() throws {
        let report = try json(["writes", Self.trace, "--mem", "ticks:4", "--last"])
        let write = try #require(report["writes"].array?.first)
        let exit = try #require(write["exit"].int)
        let difference = try json(["diff", "\(Self.trace)@\(exit - 1)", "\(Self.trace)@\(exit)"])
        let change = difference["memory"]["changes"].array?.first { $0["symbol"].string == "ticks" }
        #expect(change?["a"] == write["old"] && change?["b"] == write["new"])
        let later = try json(["diff", "\(Self.trace)@\(exit)", Self.trace])
        #expect(later["memory"]["changes"].array?.contains { $0["symbol"].string == "ticks" } == false)
    }

    @Test func picturesAreFiles() throws {
        let output = try Vmrr.run(["diff", Self.trace + "@0", Self.trace, "--stat", "--image", "map.png"])
        #expect(output.status == 0, "\(output)")
        let bytes = [UInt8](Folder.current.bytes("map.png"))
        #expect(
            bytes.starts(with: [0x89, 0x50, 0x4E, 0x47])
                && bytes.suffix(8).elementsEqual([0x49, 0x45, 0x4E, 0x44, 0xAE, 0x42, 0x60, 0x82]))
    }

    @Test func replayStopsWhereAPredicateHolds() throws {
        let report = try json(["replay", Self.trace, "--until", "u32[ticks] == 50"])
        let exits = try #require(report["exits"].int)
        let bisected = try json(["bisect", Self.trace, "--when", "u32[ticks] >= 50"])
        #expect(bisected["exit"].int == exits)
        #expect(try Vmrr.run(["replay", Self.trace, "--until", "u32[ticks] == 5000000"]).status == 64)
    }

    @Test func aTraceDoesntDivergeFromItself() throws {
        let report = try json(["diverge", Self.trace, Self.trace])
        #expect(report["equal"].bool == true && report["event"].isNull && report["memory"].isNull)
    }

    @Test(arguments: [
        ["bisect", "--when", "u32[ == 1"], ["bisect"], ["bisect", "--when", "true"],
        ["bisect", "--when", "false && rax == 1"],
        ["bisect", "--when", "rip == nobody"], ["bisect", "--when", "rax == 1", "--from", "9", "--to", "3"],
        ["state", "--at", "1+"], ["state", "--at", "99999999"], ["state", "--mem", "nobody"],
        ["state", "--mem", "0:9999999"],
        ["state", "--pages", "nobody"], ["state", "--symbols", "/nowhere"], ["state", "--symbols", "/dev/null"],
        ["writes", "--mem", "0xffffffffff000:8"], ["writes", "--mem", "phys:0xa0000:8"],
        ["events", "--where", "rax == 1"],
        ["replay", "--until", "rax", "--to", "3"],
    ])
    func wrongArgumentsAreUsage(arguments: [String]) throws {
        let output = try Vmrr.run([arguments[0], Self.trace] + arguments.dropFirst(), deadline: 120)
        #expect(output.status == 64, "\(output)")
    }

    @Test func errorsInPredicatesPointAtTheColumn() throws {
        let output = try Vmrr.run(["bisect", Self.trace, "--when", "rip == nobody && rax == 1"])
        #expect(output.status == 64)
        let lines = output.errors.split(separator: "\n")
        #expect(lines.count == 3 && lines[0].contains("column 8"), "\(output)")
        #expect(lines.last == "           ^~~~~~")
    }
}
