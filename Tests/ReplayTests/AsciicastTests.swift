import Foundation
import Replay
import Testing
import Trace
import VMCore

@Suite struct AsciicastTests {
    private func part(_ seconds: UInt64, _ content: ConsoleRecording.Content) -> ConsoleRecording.Part {
        .init(time: .seconds(seconds), exit: ExitNumber(1), content: content)
    }

    private func rows(_ cast: inout Asciicast, _ parts: [ConsoleRecording.Part]) throws -> [[Any]] {
        try parts.map { cast.line($0) }.filter { !$0.isEmpty }.map {
            #expect($0.hasSuffix("\n") && $0.count { $0 == "\n" } == 1)
            return try #require(try JSONSerialization.jsonObject(with: Data($0.utf8)) as? [Any])
        }
    }

    @Test func theHeaderSaysWhatAPlayerNeeds() throws {
        var cast = Asciicast()
        cast.size = (100, 30)
        cast.created = 1_700_000_000
        cast.title = "a \"guest\""
        cast.idleLimit = .seconds(2)
        let header = try #require(try JSONSerialization.jsonObject(with: Data(cast.header.utf8)) as? [String: Any])
        #expect(header["version"] as? Int == 2 && header["width"] as? Int == 100 && header["height"] as? Int == 30)
        #expect(header["timestamp"] as? Int == 1_700_000_000 && header["title"] as? String == "a \"guest\"")
        #expect(header["idle_time_limit"] as? Double == 2)
    }

    @Test func eachPartIsARow() throws {
        var cast = Asciicast()
        let parts = [part(1, .output(Array("a\r\n\u{1B}[1m".utf8))), part(2, .input([0x62])), part(3, .mark("here"))]
        let rows = try rows(&cast, parts)
        #expect(rows.count == 2 && rows[0][0] as? Double == 1 && rows[0][1] as? String == "o")
        #expect(rows[0][2] as? String == "a\r\n\u{1B}[1m")
        #expect(rows[1][0] as? Double == 3 && rows[1][1] as? String == "m" && rows[1][2] as? String == "here")
        cast.hasInput = true
        #expect(try self.rows(&cast, parts).map { $0[1] as? String } == ["o", "i", "m"])
    }

    @Test func charactersThatComeInPiecesStayWhole() throws {
        var cast = Asciicast()
        let text = Array("é€😀".utf8)
        let rows = try rows(&cast, text.enumerated().map { part(UInt64($0), .output([$1])) })
        #expect(rows.compactMap { $0[2] as? String } == ["é", "€", "😀"])
        // What is no character is shown as such, and swallows nothing.
        let wild = try self.rows(&cast, [part(0, .output([0xFF, 0x41, 0xE2])), part(1, .output([0x42]))])
        #expect(wild.compactMap { $0[2] as? String } == ["\u{FFFD}A", "\u{FFFD}B"])
    }
}
