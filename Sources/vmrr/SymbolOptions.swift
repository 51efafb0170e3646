import ArgumentParser
import Replay
import Trace
import VMCore

/// Names for addresses.
struct SymbolOptions: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "An ELF file, a Linux kernel (vmlinuz or vmlinux) or a System.map with the guest's symbols: addresses are "
                + "printed with names, and names can be given for addresses. May be repeated.", valueName: "file"))
    var symbols: [String] = []

    /// The symbols of the files, and of the built-in guest that the trace is of.
    func table(for reader: TraceReader) throws -> SymbolTable { try load(for: reader).table }

    /// The symbols of the files, and of the built-in guest that the trace is of. Those of a Linux kernel lie where it
    /// ran at the checkpoint before `exit`.
    func load(for reader: TraceReader, near exit: ExitNumber? = nil) throws
        -> (table: SymbolTable, unwinding: KernelUnwinding?)
    {
        var table = SymbolTable()
        var unwinding: KernelUnwinding?
        for path in symbols {
            do {
                let file = try SymbolFile(GuestOptions.readFile(path))
                let linked = SymbolTable(file.symbols)
                let slide = try slide(of: linked, path, in: reader, near: exit)
                if slide == 0 { table.add(linked) } else { table.add(linked.moved(by: slide)) }
                if let orc = file.unwinding { unwinding = KernelUnwinding(table: orc, slide: slide) }
            } catch let error as SymbolError {
                throw UsageError("\(path): \(error)")
            }
        }
        table.add(try reader.builtInSymbols())
        return (table, unwinding)
    }

    private func slide(of table: SymbolTable, _ path: String, in reader: TraceReader, near exit: ExitNumber?) throws
        -> UInt64
    {
        guard KernelSlide.concerns(table) else { return 0 }
        guard let slide = try KernelSlide.find(in: reader, of: table, near: exit) else {
            say("vmrr: no checkpoint tells where the kernel ran: its symbols are where \(path) has them")
            return 0
        }
        if slide != 0 { say("vmrr: the kernel ran 0x\(String(slide, radix: 16)) above where \(path) has it (KASLR)") }
        return slide
    }

    func predicate(_ source: String, of reader: TraceReader, option: String, scope: GuestPredicate.Scope = .guest)
        throws
        -> GuestPredicate
    {
        do {
            return try GuestPredicate(source, symbols: table(for: reader), scope: scope)
        } catch let error as GuestPredicateError {
            throw UsageError("\(option): \(error)")
        }
    }

    func address(_ text: String, in table: SymbolTable, option: String) throws -> UInt64 {
        guard let address = table.address(text) else {
            throw UsageError("\(option) takes an address such as 0x1000 or a symbol, not '\(text)'")
        }
        return address
    }

    func range(_ text: String, in table: SymbolTable, option: String, standard: Int) throws -> AddressRange {
        guard let range = AddressRange(text, symbols: table, standard: standard) else {
            throw UsageError(
                "\(option) takes ADDR, ADDR:LEN or phys:ADDR:LEN with at most \(AddressRange.largest) bytes, "
                    + "and numbers or symbols, not '\(text)'")
        }
        return range
    }
}
