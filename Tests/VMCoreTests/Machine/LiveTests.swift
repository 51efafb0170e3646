import Testing
import VMCore

@Suite struct MachineClockTests {
    private func engine() throws -> SoftEngine { try SoftMachine([0x90]).engine }

    /// Wherever it starts: the moment that was asked for is there when the host's clock says so, and not before.
    @Test(arguments: [0, 1, 31, 32, 12_345, 1 << 40 + 7] as [UInt64]) func momentsAreShownWhenTheyAreDue(_ start: UInt64) throws {
        let engine = try engine()
        let clock = MachineClock(.host, now: Nanoseconds(start), engine: engine)
        var last = Nanoseconds(start)
        for i in 1...200 as ClosedRange<UInt64> {
            let moment = clock.now(engine) + Nanoseconds(1_000 + i)
            let due = clock.hostMoment(moment)
            while true {
                let shown = clock.now(engine), host = hostTime()
                #expect(shown >= last && shown.rawValue % MachineClock.resolution == 0)
                last = shown
                if host < due { #expect(shown < moment) } else { break }
            }
            #expect(clock.now(engine) >= moment)
        }
        _ = clock.hostMoment(Nanoseconds(.max))
    }

    @Test func instructionsAreCountedToTheNanosecond() throws {
        let engine = try engine()
        let clock = MachineClock(.instructions(millionsPerSecond: 1000), now: Nanoseconds(12_345), engine: engine)
        #expect(clock.now(engine) == Nanoseconds(12_345))
    }
}

@Suite struct SerialScriptTests {
    @Test func scriptsAreTimesPromptsAndTexts() throws {
        let script = try SerialScript(parsing: """
            # a comment
            100ms "a\\r"
            +2s   "\\x04\\\\\\""
            expect "login: " "root\\n"
            """)
        #expect(script.lines == [
            .init(trigger: .at(.milliseconds(100)), action: .type([0x61, 13])),
            .init(trigger: .after(.seconds(2)), action: .type([4, 0x5C, 0x22])),
            .init(trigger: .expect(Array("login: ".utf8)), action: .type(Array("root\n".utf8))),
        ])
    }

    @Test(arguments: ["soon \"x\"", "100ms", "100ms x", "100ms \"x", "100ms \"x\" y", "expect \"a\"", "expect \"\" \"b\"", "+ \"x\"",
                      "100ms \"\\q\"", "100ms \"\\x1\""])
    func mistakesNameTheirLine(_ line: String) {
        do {
            _ = try SerialScript(parsing: "# first\n\(line)\n")
            Issue.record("\(line) was accepted")
        } catch {
            #expect(error.line == 2)
        }
    }
}

@Suite struct SmallPartsTests {
    @Test func spansHaveUnits() {
        #expect(Nanoseconds(parsing: "30s") == .seconds(30))
        #expect(Nanoseconds(parsing: "250ms") == .milliseconds(250))
        #expect(Nanoseconds(parsing: "20us") == .microseconds(20))
        #expect(Nanoseconds(parsing: "2min") == .seconds(120))
        #expect(Nanoseconds(parsing: "1.5h") == .seconds(5400))
        #expect(Nanoseconds(parsing: "7") == .seconds(7))
        for bad in ["", "s", "-1s", "1x", "1e30h", "nan", "inf", "+5s", "0x10s"] { #expect(Nanoseconds(parsing: bad) == nil) }
    }

    @Test func latencyPercentilesAreUpperBounds() {
        var statistics = LatencyStatistics()
        #expect(statistics.percentile(0.99) == Nanoseconds(0))
        for n in 1...1000 as ClosedRange<UInt64> { statistics.add(.microseconds(n)) }
        let half = statistics.percentile(0.5)
        #expect(half >= .microseconds(500) && half <= .microseconds(640))
        #expect(statistics.percentile(1) == .microseconds(1000))
        #expect(statistics.worst == .microseconds(1000))
    }

    @Test func digestsAreHexBothWays() throws {
        let digest = [UInt8](0..<100).withUnsafeBytes { Digest128(of: $0) }
        #expect(digest.description.count == 32)
        #expect(Digest128(low: 1, high: 0).description == "00000000000000000000000000000001")
    }
}
