import Foundation
import Testing
import Trace
import VMCore

extension EndToEnd {
    /// Point 7: a change in the recorded input is reported, at the first exit that can't be as recorded.
    @Suite(.needsKVM) struct Divergences {
        private static let lineStatus: UInt64 = 0x3FD
        private static let data: UInt64 = 0x3F8
        private static let transmitterEmpty: UInt64 = 0x20
        /// The recorder stores a digest of the registers at every exit whose number this divides.
        private static let checkInterval = 256

        /// Records, changes, replays; expects the divergence at `exit`.
        private func diverges(
            _ trace: Recorded, at exit: Int, expecting words: String? = nil, _ change: (inout LooseTrace) throws -> Void,
            sourceLocation: SourceLocation = #_sourceLocation
        ) throws {
            var loose = try LooseTrace(trace.path)
            try change(&loose)
            let path = Folder.current("changed.vmrr")
            try loose.write(to: path)
            let output = try replay(path)
            #expect(output.status == 3, "\(output)", sourceLocation: sourceLocation)
            #expect(output.json["diverged"]["exit"].int == exit, "\(output)", sourceLocation: sourceLocation)
            if let words {
                #expect(output.json["diverged"]["expected"].string?.contains(words) == true, "\(output)",
                        sourceLocation: sourceLocation)
            }
            #expect(output.json["diverged"]["actual"].string?.isEmpty == false, sourceLocation: sourceLocation)
        }

        @Test func writingATraceAgainChangesNothing() throws {
            for guest in [Guest.builtIn("hello"), try .echo(), .builtIn("lost-update", "ticks=30")] {
                let trace = try record(guest)
                try LooseTrace(trace.path).write(to: trace.path)
                try replaysTheSame(trace)
            }
        }

        /// The guest sees a busy transmitter and looks again, where it wrote a character in the recording.
        @Test func aFlippedStatusBitShowsAtTheNextExit() throws {
            let trace = try record(.builtIn("hello"))
            let polls = try LooseTrace(trace.path).exits { $0.isRead(of: Self.lineStatus) }
            for exit in [polls[0], polls[polls.count / 2], polls[polls.count - 1]] {
                try diverges(trace, at: exit + 1, expecting: "port write 0x3f8") {
                    let index = try #require($0.index(ofExit: exit))
                    #expect($0.events[index].value & Self.transmitterEmpty != 0)
                    $0.events[index].value ^= Self.transmitterEmpty
                }
            }
        }

        /// The guest echoes another letter than it did.
        @Test func anotherKeyShowsWhereItIsEchoed() throws {
            let trace = try record(try .echo())
            let loose = try LooseTrace(trace.path)
            let key = UInt64(UInt8(ascii: "h"))
            let typed = try #require(loose.exits { $0.isRead(of: Self.data) && $0.value == key }.first)
            let echoed = try #require(loose.exits {
                $0.isWrite(to: Self.data) && $0.value == key && $0.exit.rawValue > UInt64(typed)
            }.first)
            try diverges(trace, at: echoed, expecting: "port write 0x3f8 size 1 = 0x68") {
                $0.events[try #require($0.index(ofExit: typed))].value ^= 1
            }
        }

        /// The clock's value goes into a checksum, so that the next check of the registers finds it.
        @Test func anotherTimeShowsAtTheNextCheckOfTheRegisters() throws {
            let trace = try record(.builtIn("clocks", "rounds=100"))
            let loose = try LooseTrace(trace.path)
            let times = loose.exits { $0.identity.kind == .timestamp || $0.isRead(of: 0x40) }
                .filter { $0 < trace.exits / Self.checkInterval * Self.checkInterval }
            for exit in [times[times.count / 3], times[times.count * 2 / 3]] {
                // At the check itself the value may be in a register that the checksum hasn't seen yet: either way.
                let check = (exit + Self.checkInterval - 1) / Self.checkInterval * Self.checkInterval
                try diverges(trace, at: check, expecting: "register digest") {
                    $0.events[try #require($0.index(ofExit: exit))].value ^= 0x10
                }
            }
        }

        @Test func anotherOutputShowsAtOnce() throws {
            let trace = try record(.builtIn("hello"))
            let exit = try #require(try LooseTrace(trace.path).exits { $0.isWrite(to: Self.data) }.dropFirst(5).first)
            try diverges(trace, at: exit, expecting: "port write 0x3f8") {
                $0.events[try #require($0.index(ofExit: exit))].value ^= 1
            }
        }

        @Test func aMissingExitShowsAtOnce() throws {
            let trace = try record(.builtIn("hello"))
            let exit = try #require(try LooseTrace(trace.path).exits { $0.isRead(of: Self.lineStatus) }.dropFirst(7).first)
            try diverges(trace, at: exit, expecting: "port write") {
                $0.events.remove(at: try #require($0.index(ofExit: exit)))
                $0.ending = nil
            }
        }

        @Test func aMissingInterruptShows() throws {
            let trace = try record(.builtIn("ticker", "ticks=20"))
            var loose = try LooseTrace(trace.path)
            let index = try #require(loose.events.firstIndex { $0.identity.kind == .interruptAtExit })
            loose.events.remove(at: index)
            try loose.write(to: Folder.current("changed.vmrr"))
            let output = try replay(Folder.current("changed.vmrr"))
            #expect(output.status == 3, "\(output)")
        }

        /// A bit in memory that the guest never touches shows in the comparison at the end.
        @Test func anotherMemoryShowsAtTheEnd() throws {
            let trace = try record(.builtIn("hello"))
            try diverges(trace, at: trace.exits, expecting: "memory digest") {
                $0.pages[0x1F00] = [UInt8](repeating: 1, count: 4096)
            }
        }
    }
}
