/// A boot sector that reads ports in a loop: the exit-bound guest.
enum PortLoop {
    /// Reads the line status, the timer's counter and the system port `rounds` times each, then ends with success;
    /// without a number it goes on for ever.
    static func image(rounds: UInt32?) -> [UInt8] {
        var code: [UInt8] = [0xFA]                                      // cli
        code += [0x66, 0xB9] + little(rounds ?? 0)                      // mov ecx, rounds
        code += [0xBA, 0xFD, 0x03]                                      // again: mov dx, 0x3fd
        code += [0xEC]                                                  // in al, dx
        code += [0xE4, 0x40]                                            // in al, 0x40
        code += [0xE4, 0x61]                                            // in al, 0x61
        code += [0x66, 0x49]                                            // dec ecx
        code += [rounds == nil ? 0xEB : 0x75, 0xF4]                     // jmp / jnz again
        return code + exit(0)
    }

    /// Ends with `status`.
    static func exit(_ status: UInt8) -> [UInt8] {
        [0xB0, status, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD]                    // mov al, status; out 0xf4, al; hlt; jmp
    }

    /// Prints `text` on the debug console and ends with success. Runs at any address: it names none.
    static func printing(_ text: String) -> [UInt8] {
        text.utf8.flatMap { [0xB0, $0, 0xE6, 0xE9] } + exit(0)          // mov al, c; out 0xe9, al
    }

    private static func little(_ value: UInt32) -> [UInt8] {
        (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }
}
