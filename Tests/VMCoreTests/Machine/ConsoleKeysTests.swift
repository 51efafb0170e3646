import Testing
import VMCore

@Suite struct ConsoleKeysTests {
    private func take(_ keys: String...) -> [ConsoleKeys.Action] {
        var state = ConsoleKeys()
        return keys.flatMap { state.take($0.utf8) }
    }

    @Test func whatIsTypedGoesToTheGuest() {
        #expect(take("ls\r", "\u{3}\u{1A}\u{1B}[A") == [.type(Array("ls\r".utf8)), .type([3, 26, 27, 0x5B, 0x41])])
        #expect(take("é") == [.type([0xC3, 0xA9])])
    }

    @Test func controlABeginsCommands() {
        #expect(take("\u{1}x") == [.quit])
        #expect(take("\u{1}a", "\u{1}\u{1}") == [.type([1]), .type([1])])
        // Also when the keys come one by one.
        #expect(take("a", "\u{1}", "x") == [.type([0x61]), .quit])
        guard case .show(let text)? = take("\u{1}?").first else {
            Issue.record("Ctrl-a ? shows no help")
            return
        }
        #expect(text.contains("Ctrl-a x"))
    }

    @Test func nothingTypedIsLost() {
        #expect(take("1\u{1}z2") == [.type([0x31, 1, 0x7A, 0x32])])
        // What comes behind the monitor's last line, in the same breath, is the guest's again.
        #expect(take("a\u{1}ccontinue\rb") == [
            .type([0x61]), .openMonitor, .echo(Array("continue".utf8)), .show("\n"), .closeMonitor, .type([0x62]),
        ])
    }

    private func commands(_ line: String) -> [ConsoleKeys.Action] {
        take("\u{1}c", line + "\r").filter {
            if case .echo = $0 { false } else { $0 != .openMonitor && $0 != .show("\n") }
        }
    }

    @Test func theMonitorTakesLines() {
        #expect(commands("mark") == [.monitor(.mark(nil))])
        #expect(commands("mark  before the crash") == [.monitor(.mark("before the crash"))])
        #expect(commands("m x") == [.monitor(.mark("x"))])
        #expect(commands("info") == [.monitor(.info)] && commands("checkpoint") == [.monitor(.checkpoint)])
        #expect(commands("help") == [.monitor(.help)] && commands("?") == [.monitor(.help)])
        #expect(commands("resize") == [.monitor(.resize)])
        #expect(commands("quit") == [.quit])
        #expect(commands("") == [.closeMonitor] && commands("continue") == [.closeMonitor])
        guard case .mistake(let ambiguous)? = commands("c").first, case .mistake(let unknown)? = commands("jump").first,
            case .mistake(let more)? = commands("info all").first
        else {
            Issue.record("wrong lines aren't refused")
            return
        }
        #expect(ambiguous.contains("checkpoint or continue") && unknown.contains("jump") && more.contains("nothing after"))
    }

    @Test func linesOfTheMonitorAreEdited() {
        #expect(commands("infox\u{7F}").contains(.monitor(.info)))
        #expect(commands("nonsense\u{15}info").contains(.monitor(.info)))
        // A character of two bytes goes with one key.
        #expect(commands("infoé\u{7F}").contains(.monitor(.info)))
        #expect(take("\u{1}c\u{4}") == [.openMonitor, .show("\n"), .closeMonitor])
        #expect(take("\u{1}c\u{1}c") == [.openMonitor, .closeMonitor])
        #expect(take("\u{1}cin\u{1}x").contains(.quit))
    }

    @Test func scriptsMark() throws {
        let script = try SerialScript(parsing: "1s mark \"ready\"\nexpect \"# \" mark \"shell\"\n+1ms \"ls\\r\"\n")
        #expect(script.lines.map(\.action) == [.mark("ready"), .mark("shell"), .type(Array("ls\r".utf8))])
        #expect(throws: SerialScript.SyntaxError.self) { try SerialScript(parsing: "1s mark") }
        #expect(throws: SerialScript.SyntaxError.self) { try SerialScript(parsing: "1s remark \"x\"") }
    }
}
