import Testing
import VMCore

@Suite struct SerialPortTests {
    /// A prompt is found wherever the guest's output is cut, and once.
    @Test(arguments: [1, 2, 3, 5, 7, 64, 100_000]) func aPromptIsFoundInPieces(_ piece: Int) throws {
        let script = try SerialScript(parsing: """
            expect "login: " "one"
            expect "aab" "two"
            expect "login: " "three"
            """)
        let port = try SerialPort(.script(script), console: -1)
        var typed: [UInt8] = []
        func print(_ text: String) {
            var rest = Array(text.utf8)[...]
            while !rest.isEmpty {
                port.send(Array(rest.prefix(piece)))
                rest = rest.dropFirst(piece)
                port.deliverInput(at: Nanoseconds(0)) {
                    typed.append($0)
                    return true
                }
            }
        }
        print(String(repeating: "login ", count: 20_000) + "log")
        #expect(typed.isEmpty)
        print("in: ")
        #expect(typed == Array("one".utf8))
        print("aa aaa")
        #expect(typed == Array("one".utf8))
        print("b")
        #expect(typed == Array("onetwo".utf8))
        print("login:")
        #expect(typed == Array("onetwo".utf8))
        print(" ")
        #expect(typed == Array("onetwothree".utf8) && !port.mayReceive)
    }
}
